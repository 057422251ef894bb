"""Mu2SGD in torch's world: freezing, copies, moves, schedulers and other libraries."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from flwr_ctma.optim.mu2sgd import Mu2SGD, load_state_record, state_record
from flwr_ctma.optim.schedules import Fixed, Floored, Paper, Schedule, Unaveraged

pytestmark = pytest.mark.usefixtures("one_thread")

SCHEDULES = [Fixed(), Paper(), Floored(), Fixed(storm_beta=1.0), Unaveraged(Fixed())]
GAPS = {
    "frozen": lambda t: (True, t < 3),
    "unfrozen later": lambda t: (True, t > 30),
    "frozen for a while": lambda t: (True, not 10 < t < 20),
    "alternating": lambda t: (t % 2 == 0, t % 2 == 1),
    "used now and then": lambda t: (True, t % 3 == 0),
}


def target(x, y, c):
    """The loss of a sample c: the gradients of x and of y depend on both."""
    return ((x - y - c) ** 2 + (y - 2 + c) ** 2 + 0.1 * (x * y) ** 2).sum()


def by_hand(schedule, used, samples, lr):
    """μ²-SGD for two scalars, either of which may have no gradient in a step."""

    def gradient(point, c):
        x, y = point
        return np.array(
            [
                2 * (x - y - c) + 0.2 * x * y**2,
                -2 * (x - y - c) + 2 * (y - 2 + c) + 0.2 * y * x**2,
            ]
        )

    point = np.array([0.0, 1.0])
    last, w, d = None, point.copy(), np.zeros(2)
    steps, since = np.zeros(2, int), np.zeros(2, int)
    trajectory = []
    for t, c in enumerate(samples):
        g, before = gradient(point, c), point.copy()
        for i in range(2):
            if not used(t)[i]:
                since[i] = 0
                continue
            steps[i], since[i] = steps[i] + 1, since[i] + 1
            beta = schedule(int(since[i])).storm_beta
            d[i] = g[i] + (
                (1 - beta) * (d[i] - gradient(last, c)[i]) if since[i] > 1 else 0
            )
            alpha, _, gamma = schedule(int(steps[i]))
            w[i] -= lr * alpha * d[i]
            point[i] += gamma * (w[i] - point[i])
        last = before
        trajectory.append(point.copy())
    return np.array(trajectory)


@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("freeze", [True, False], ids=["requires_grad", "branch"])
def test_parameters_without_gradients_do_not_bias_the_others(schedule, gap, freeze):
    used = GAPS[gap]
    samples = np.random.default_rng(0).normal(size=60) / 5
    lr = 2e-3 if "paper" in str(schedule) else 0.02
    x, y = (nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (0.0, 1.0))
    optimizer = Mu2SGD([x, y], lr, schedule)
    trajectory = []
    for t, c in enumerate(samples):
        uses_x, uses_y = used(t)
        if freeze:
            x.requires_grad_(uses_x)
            y.requires_grad_(uses_y)

        def closure(c=c, uses_x=uses_x, uses_y=uses_y):
            optimizer.zero_grad()
            loss = target(x if uses_x else x.detach(), y if uses_y else y.detach(), c)
            loss.backward()
            return loss

        optimizer.step(closure)
        trajectory.append([x.item(), y.item()])
    expected = by_hand(schedule, used, samples, lr)
    np.testing.assert_allclose(trajectory, expected, rtol=0, atol=1e-12)
    assert np.abs(expected[-1] - expected[0]).max() > 1e-3


def test_parameter_converges_to_a_frozen_parameter():
    x, y = (nn.Parameter(torch.tensor([v])) for v in (0.0, 1.0))
    optimizer = Mu2SGD([x, y], 0.1)
    for step in range(1000):
        if step == 3:
            y.requires_grad_(False)
            frozen_at = y.item()

        def closure():
            optimizer.zero_grad()
            loss = ((x - y) ** 2 + (y - 5) ** 2).sum()
            loss.backward()
            return loss

        optimizer.step(closure)
    assert y.item() == frozen_at
    assert x.item() == pytest.approx(frozen_at, abs=1e-4)


def test_model_without_any_gradient_stays():
    x = nn.Parameter(torch.ones(2), requires_grad=False)
    Mu2SGD([x], 0.1).step(lambda: torch.tensor(0.0))
    assert torch.equal(x, torch.ones(2))


class Custom(Schedule):
    """A schedule of the user's own, which has no spelling."""

    def __post_init__(self):
        pass

    def __call__(self, t):
        return Fixed(storm_beta=0.5)(t)

    def __repr__(self):
        return "Custom()"

    def __eq__(self, other):
        return type(other) is Custom

    __hash__ = object.__hash__


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


DATA = torch.randn(40, 8, 3, generator=torch.Generator().manual_seed(1))


def fit(model, optimizer, data):
    for images in data:
        images = images.to(model[0].weight)

        def closure(images=images):
            optimizer.zero_grad()
            loss = model(images).square().mean() + model[3].bias.sum() / 9
            loss.backward()
            return loss

        optimizer.step(closure)
    return {k: v.clone() for k, v in model.state_dict().items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda both: pickle.loads(pickle.dumps(both)),
}


@pytest.mark.parametrize("copied", COPIES)
@pytest.mark.parametrize("schedule", ["paper", Custom()], ids=str)
def test_copy_trains_on_like_the_original(copied, schedule):
    model = net()
    settings = {"clip": 0.5, "radius": 2.0, "buffers": model.buffers()}
    optimizer = Mu2SGD(model.parameters(), 0.05, schedule, **settings)
    fit(model, optimizer, DATA[:4])
    twin, its_optimizer = COPIES[copied]((model, optimizer))
    assert_same(fit(twin, its_optimizer, DATA[4:8]), fit(model, optimizer, DATA[4:8]))


def test_optimizer_is_saved_whole(tmp_path):
    model = net()
    optimizer = Mu2SGD(model.parameters(), 0.05, "floored", buffers=model.buffers)
    fit(model, optimizer, DATA[:4])
    torch.save((model, optimizer), tmp_path / "all.pt")
    twin, its_optimizer = torch.load(tmp_path / "all.pt", weights_only=False)
    assert_same(fit(twin, its_optimizer, DATA[4:8]), fit(model, optimizer, DATA[4:8]))


@pytest.mark.parametrize("schedule", [*SCHEDULES, Custom()], ids=str)
def test_state_dict_restores_schedule_clip_and_radius(schedule, tmp_path):
    model = net()
    optimizer = Mu2SGD(model.parameters(), 0.05, schedule, clip=0.5, radius=2.0)
    fit(model, optimizer, DATA[:4])
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    plain = not isinstance(schedule, Custom)
    fresh = Mu2SGD(model.parameters(), 1.0, "fixed(gamma=0.5)")
    fresh.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=plain))
    assert (fresh.schedule, fresh.clip, fresh.radius) == (schedule, 0.5, 2.0)
    assert fresh.param_groups[0]["lr"] == 0.05


def test_state_of_a_parameter_with_gaps_is_restored():
    def trained(resume):
        model = net().bfloat16()
        optimizer = Mu2SGD(model.parameters(), 0.05, "paper")
        fit(model, optimizer, DATA[:3])
        model[0].requires_grad_(False)
        fit(model, optimizer, DATA[3:4])
        model[0].requires_grad_(True)
        fit(model, optimizer, DATA[4:6])
        if resume:
            fresh = Mu2SGD(model.parameters(), 0.05, "paper")
            if resume == "record":
                assert load_state_record(fresh, state_record(optimizer))
            else:
                fresh.load_state_dict(optimizer.state_dict())
            optimizer = fresh
        counts = [int(s["momentum_step"]) for s in optimizer.state.values()]
        assert counts == [2, 2, 6, 6, 6, 6]
        return fit(model, optimizer, DATA[6:9])

    assert_same(trained("record"), trained(None))
    assert_same(trained("state_dict"), trained(None))


def test_momentum_count_stays_exact_in_bfloat16():
    x = nn.Parameter(torch.ones(1).bfloat16())
    optimizer = Mu2SGD([x], 1e-3, "paper")

    def closure():
        optimizer.zero_grad()
        loss = x.sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    optimizer.state[x]["momentum_step"] = torch.tensor(1001)
    fresh = Mu2SGD([x], 1e-3, "paper")
    fresh.load_state_dict(optimizer.state_dict())
    assert int(fresh.state[x]["momentum_step"]) == 1001


def watched_statistics(model, data):
    """Running statistics of one forward pass at the present point."""
    twin = copy.deepcopy(model)
    twin(data.to(model[0].weight))
    return twin[1].running_mean.clone()


@pytest.mark.parametrize("moved", ["before the first step", "later"])
def test_buffers_of_a_cast_model_are_restored(moved):
    model = net()
    optimizer = Mu2SGD(model.parameters(), 0.05, buffers=model.buffers)
    if moved == "later":
        fit(model, optimizer, DATA[:3])
    model.double()
    for data in DATA[3:6]:
        expected = watched_statistics(model, data)
        fit(model, optimizer, [data])
        torch.testing.assert_close(model[1].running_mean, expected)
    states = [s[k] for s in optimizer.state.values() for k in ("lead", "momentum")]
    assert {value.dtype for value in states} == {torch.float64}


@pytest.mark.parametrize("steps", [0, 3])
def test_tensors_as_buffers_are_refused_after_a_cast(steps):
    model = net()
    optimizer = Mu2SGD(model.parameters(), 0.05, buffers=model.buffers())
    fit(model, optimizer, DATA[:steps])
    model.double()
    with pytest.raises(ValueError, match=r"`buffers` should be a function.*float32"):
        fit(model, optimizer, DATA[3:4])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_parameters_on_several_devices_are_one_vector():
    def trained(device):
        x = nn.Parameter(torch.full((2,), 3.0))
        y = nn.Parameter(torch.full((2,), 4.0, device=device))
        optimizer = Mu2SGD([x, y], 0.1, clip=1.0, radius=4.0)

        def closure():
            optimizer.zero_grad()
            loss = (x**2).sum() + (y.cpu() ** 2).sum()
            loss.backward()
            return loss

        for _ in range(5):
            optimizer.step(closure)
        return torch.cat([x, y.cpu()]).detach()

    torch.testing.assert_close(trained("cuda"), trained("cpu"))


def test_sparse_gradient_is_refused():
    table = nn.Embedding(4, 2, sparse=True)
    optimizer = Mu2SGD(table.parameters(), 0.1)

    def closure():
        loss = table(torch.tensor([1])).sum()
        loss.backward()
        return loss

    with pytest.raises(ValueError, match=r"`gradient` should be dense.*sparse=False"):
        optimizer.step(closure)


def test_gradients_from_before_the_step_are_refused():
    x = nn.Parameter(torch.ones(2))
    optimizer = Mu2SGD([x], 0.1)
    loss = (x**2).sum()
    loss.backward()
    with pytest.raises(ValueError, match=r"`closure`.*calls `backward`"):
        optimizer.step(lambda: loss)
    assert torch.equal(x, torch.ones(2))


def test_gradients_of_the_last_step_are_not_reused():
    """A batch may use none of the parameters: then nothing moves."""
    x = nn.Parameter(torch.ones(2))
    optimizer = Mu2SGD([x], 0.1)

    def closure():
        loss = (x**2).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    before = x.detach().clone()
    optimizer.step(lambda: torch.tensor(0.0))
    assert torch.equal(x, before)


def test_learning_rate_scheduler_of_torch_sets_the_step():
    x = nn.Parameter(torch.tensor([1.0]))
    optimizer = Mu2SGD([x], 1.0, Fixed(storm_beta=1.0, gamma=1.0))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)

    def closure():
        optimizer.zero_grad()
        loss = x.sum()
        loss.backward()
        return loss

    positions = []
    for _ in range(3):
        optimizer.step(closure)
        scheduler.step()
        positions.append(x.item())
    assert positions == [0.0, -0.5, -0.75]


def test_autocast_with_bfloat16_trains():
    model = net()
    optimizer = Mu2SGD(model.parameters(), 0.1, buffers=model.buffers)

    def closure():
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(DATA[0]).square().mean()
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(60)]
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("how", ["positional", "keyword", "unscaled"])
def test_grad_scaler_is_refused(how):
    x = nn.Parameter(torch.ones(2))
    optimizer, scaler = Mu2SGD([x], 0.1), torch.amp.GradScaler("cpu")

    def closure():
        loss = scaler.scale((x**2).sum())
        loss.backward()
        return loss

    closure()
    if how == "unscaled":
        scaler.unscale_(optimizer)
    with pytest.raises((ValueError, RuntimeError), match="GradScaler"):
        if how == "keyword":
            scaler.step(optimizer, closure=closure)
        else:
            scaler.step(optimizer, closure)
    assert torch.equal(x, torch.ones(2))


def test_accelerate_trains():
    accelerate = pytest.importorskip("accelerate")
    model = net()
    accelerator = accelerate.Accelerator(cpu=True)
    optimizer = Mu2SGD(model.parameters(), 0.1, "floored", buffers=model.buffers)
    model, optimizer = accelerator.prepare(model, optimizer)

    def closure():
        optimizer.zero_grad()
        loss = model(DATA[0]).square().mean()
        accelerator.backward(loss)
        return loss

    losses = []
    for _ in range(60):
        optimizer.step(closure)
        with torch.no_grad():
            losses.append(model(DATA[0]).square().mean().item())
    assert losses[-1] < losses[0] / 2
    assert int(optimizer.optimizer.state[model[0].weight]["step"]) == 60


def test_opacus_is_refused_by_the_step_without_a_closure():
    """Its optimizer evaluates the closure itself, then calls `step()` without one."""
    x = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match=r"`closure` should be a function"):
        Mu2SGD([x], 0.1).step()
