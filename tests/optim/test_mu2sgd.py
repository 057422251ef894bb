"""Mu2SGD against recursions written by hand, and its state against its bits."""

import copy
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Context, RecordDict
from torch import nn

from flwr_ctma.optim.mu2sgd import Mu2SGD, load_state_record, state_record
from flwr_ctma.optim.schedules import Fixed, Floored, Paper, Unaveraged, parse_schedule

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 200
D = 6
SCHEDULES = [Paper(), Fixed(), Fixed(storm_beta=1.0), Floored(), Unaveraged(Paper())]
CUDA = pytest.param(
    "cuda",
    marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
)


class Quadratics:
    """f(x; z) = (x - c_z)ᵀ A_z (x - c_z) / 2: curvature and centre differ by sample."""

    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)
        half = rng.normal(size=(STEPS, D, D)) / np.sqrt(D)
        self.a = half @ half.transpose(0, 2, 1) + 0.1 * np.eye(D)
        self.c = rng.normal(size=(STEPS, D))
        self.start = rng.normal(size=D)

    def gradient(self, t, x):
        return self.a[t] @ (x - self.c[t])


def by_hand(f, lr, abc, weight_decay=0.0, clip=np.inf, radius=np.inf):
    """μ²-SGD as the paper writes it, with w itself; weights by step from `abc(t)`."""

    def gradient(t, x):
        g = f.gradient(t, x)
        return g * min(1.0, clip / np.linalg.norm(g)) + weight_decay * x

    w = x = f.start
    last = d = None
    trajectory = []
    for t in range(1, STEPS + 1):
        alpha, beta, gamma = abc(t)
        g = gradient(t - 1, x)
        d = g if d is None else g + (1 - beta) * (d - gradient(t - 1, last))
        w = w - lr * alpha * d
        w = w * min(1.0, radius / np.linalg.norm(w))
        last, x = x, x + gamma * (w - x)
        trajectory.append(x)
    return np.array(trajectory)


def by_torch(f, optimizer_of, split=False, device="cpu"):
    """The same with Mu2SGD; `split` makes two parameters of the vector."""
    whole = torch.tensor(f.start, device=device)
    parts = (whole[:2], whole[2:]) if split else (whole,)
    parameters = [nn.Parameter(part.clone()) for part in parts]
    optimizer = optimizer_of(parameters)
    a, c = torch.tensor(f.a, device=device), torch.tensor(f.c, device=device)
    trajectory = []
    for t in range(STEPS):

        def closure(t=t):
            optimizer.zero_grad()
            away = torch.cat(parameters) - c[t]
            loss = away @ a[t] @ away / 2
            loss.backward()
            return loss

        optimizer.step(closure)
        trajectory.append(torch.cat(parameters).detach().cpu().numpy())
    return np.array(trajectory)


def paper(t):
    total = sum(range(1, t + 2))
    return t, 1 / t, (t + 1) / total


def fixed(t):
    return 1.0, 0.25, 0.1


def authors(t):
    total = sum(range(1, t + 1))
    return 1.0, max(round(1 / t, 3), 0.01), max(round(t / total, 3), 0.01)


BY_HAND = [("paper", 2e-3, paper), ("fixed", 0.1, fixed), ("floored", 0.1, authors)]


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize(("schedule", "lr", "abc"), BY_HAND)
def test_mu2sgd_equals_the_recursion_of_the_paper(schedule, lr, abc, device):
    f = Quadratics()
    expected = by_hand(f, lr, abc)
    actual = by_torch(f, lambda x: Mu2SGD(x, lr, schedule), device=device)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)
    assert np.linalg.norm(expected[-1] - expected[0]) > 0.1


@pytest.mark.parametrize(("schedule", "lr", "abc"), BY_HAND)
@pytest.mark.parametrize(
    "options", [{"weight_decay": 0.3}, {"clip": 0.5}, {"radius": 0.4}]
)
def test_options_act_on_the_whole_vector(schedule, lr, abc, options):
    """Weight decay is in both gradients by hand, once in the step in Mu2SGD."""
    f = Quadratics(1)
    expected = by_hand(f, lr, abc, **options)
    actual = by_torch(f, lambda x: Mu2SGD(x, lr, schedule, **options), split=True)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)
    assert np.abs(expected - by_hand(f, lr, abc)).max() > 1e-3


@pytest.mark.parametrize("schedule", ["paper", "fixed"])
def test_radius_that_is_not_reached_changes_no_bit(schedule):
    free, held = (
        by_torch(Quadratics(), lambda x, r=r: Mu2SGD(x, 2e-3, schedule, radius=r))
        for r in (float("inf"), 1e3)
    )
    np.testing.assert_array_equal(free, held)


def test_groups_have_their_own_learning_rate_and_weight_decay():
    f = Quadratics(2)
    f.a = np.stack([np.diag(np.diag(a)) for a in f.a])  # coordinates do not interact

    def optimizer(parameters):
        head, tail = parameters
        tail = {"params": [tail], "lr": 0.02, "weight_decay": 0.5}
        return Mu2SGD([{"params": [head]}, tail], 0.1)

    actual = by_torch(f, optimizer, split=True)
    head, tail = by_hand(f, 0.1, fixed), by_hand(f, 0.02, fixed, weight_decay=0.5)
    np.testing.assert_allclose(actual[:, :2], head[:, :2], rtol=0, atol=1e-12)
    np.testing.assert_allclose(actual[:, 2:], tail[:, 2:], rtol=0, atol=1e-12)


def test_step_of_one_without_averaging_is_the_momentum():
    """The client's half of the exact method: x - (model after the step) = d."""
    f = Quadratics(3)
    x = nn.Parameter(torch.tensor(f.start))
    optimizer = Mu2SGD([x], lr=1.0, schedule=Unaveraged(Paper()))
    last = d = None
    for t in range(20):
        query = np.sin(np.arange(D) + t)  # wherever a server goes
        g = f.gradient(t, query)
        d = g if d is None else g + (1 - 1 / (t + 1)) * (d - f.gradient(t, last))
        with torch.no_grad():
            x.copy_(torch.tensor(query))

        def closure(t=t):
            optimizer.zero_grad()
            away = x - torch.tensor(f.c[t])
            loss = away @ torch.tensor(f.a[t]) @ away / 2
            loss.backward()
            return loss

        optimizer.step(closure)
        np.testing.assert_allclose(query - x.detach().numpy(), d, rtol=0, atol=1e-12)
        last = query


def test_torch_sgd_with_dampening_is_distributed_momentum():
    f = Quadratics(4)
    x = nn.Parameter(torch.tensor(f.start))
    optimizer = torch.optim.SGD([x], lr=0.1, momentum=0.9, dampening=0.9)
    m, expected = None, f.start
    for t in range(STEPS):
        g = f.gradient(t, expected)
        m = g if m is None else 0.9 * m + 0.1 * g
        expected = expected - 0.1 * m
        x.grad = torch.tensor(f.gradient(t, x.detach().numpy()))
        optimizer.step()
        np.testing.assert_allclose(x.detach().numpy(), expected, rtol=0, atol=1e-12)


class Net(nn.Module):
    """Everything that a second forward pass could disturb."""

    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.body = nn.Sequential(
                nn.Conv2d(1, 4, 3),
                nn.BatchNorm2d(4),
                nn.ReLU(),
                nn.Dropout(0.5),
                nn.Flatten(),
                nn.Linear(4 * 16, 3),
            )
        self.masks = []
        self.body[3].register_forward_hook(
            lambda module, inputs, output: self.masks.append(output == 0)
        )

    def forward(self, images):
        return self.body(images)


def batches(n, seed=5):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(n):
        images = torch.randn(8, 1, 6, 6, generator=generator)
        yield images, torch.randint(0, 3, (8,), generator=generator)


def fit(model, optimizer, data):
    losses = []
    for images, labels in data:

        def closure(images=images, labels=labels):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            return loss

        losses.append(optimizer.step(closure).item())
    return losses


def test_running_statistics_see_the_query_points_only():
    model = Net()
    optimizer = Mu2SGD(model.parameters(), 0.05, buffers=model.buffers())
    watched = Net()
    for batch in batches(4):
        watched.load_state_dict(model.state_dict())
        with torch.no_grad():
            watched(batch[0])
        fit(model, optimizer, [batch])
        for name, buffer in model.named_buffers():
            torch.testing.assert_close(buffer, watched.state_dict()[name])
    assert int(model.body[1].num_batches_tracked) == 4


def test_both_evaluations_share_their_dropout_masks():
    double, single = Net(), Net()
    torch.manual_seed(3)
    # A step so small that no ReLU switches: masks differ by dropout alone.
    fit(double, Mu2SGD(double.parameters(), 1e-9), batches(3))
    after_double = torch.rand(1)
    torch.manual_seed(3)
    fit(single, torch.optim.SGD(single.parameters(), 1e-9), batches(3))
    assert torch.equal(after_double, torch.rand(1))
    first, old_2, new_2, old_3, new_3 = double.masks
    assert torch.equal(old_2, new_2) and torch.equal(old_3, new_3)
    assert not torch.equal(first, new_2)
    for mask, expected in zip((first, new_2, new_3), single.masks, strict=True):
        assert torch.equal(mask, expected)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_storm_beta_one_costs_one_gradient(schedule):
    model = Net()
    fit(model, Mu2SGD(model.parameters(), 0.05, schedule), batches(3))
    corrected = schedule(2).storm_beta < 1
    assert len(model.masks) == (5 if corrected else 3)


def test_failed_closure_leaves_the_model_unchanged():
    model = Net()
    optimizer = Mu2SGD(model.parameters(), 0.05, buffers=model.buffers())
    fit(model, optimizer, batches(2))
    before = {k: v.clone() for k, v in model.state_dict().items()}

    def closure():
        model(torch.randn(8, 1, 6, 6))
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        optimizer.step(closure)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_frozen_and_unused_parameters_do_not_move():
    used, unused, frozen = (nn.Parameter(torch.ones(2)) for _ in range(3))
    frozen.requires_grad_(False)
    optimizer = Mu2SGD([used, unused, frozen], 0.1, weight_decay=0.1)

    def closure():
        optimizer.zero_grad()
        loss = (used**2).sum()
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    assert (used < 1).all()
    assert torch.equal(unused, torch.ones(2)) and torch.equal(frozen, torch.ones(2))


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("way", ["state_dict", "context"])
def test_state_is_restored_to_the_bit(way, schedule, device, tmp_path):
    """Training that stops, stores and resumes equals training that does not."""

    def continued(resume):
        torch.manual_seed(0)
        model = Net().to(device)
        data = [(x.to(device), y.to(device)) for x, y in batches(6)]
        buffers = list(model.buffers())
        optimizer = Mu2SGD(model.parameters(), 0.05, schedule, buffers=buffers)
        fit(model, optimizer, data[:3])
        if resume:
            fresh = Mu2SGD(model.parameters(), 0.05, schedule, buffers=buffers)
            if way == "state_dict":
                torch.save(optimizer.state_dict(), tmp_path / "state.pt")
                fresh.load_state_dict(torch.load(tmp_path / "state.pt"))
            else:
                context = Context(1, 1, {}, RecordDict(), {})
                context.state["mu2"] = state_record(optimizer)
                stored = ArrayRecord.inflate(
                    context.state["mu2"].deflate(), context.state["mu2"].children
                )
                assert load_state_record(fresh, stored)
            optimizer = fresh
        losses = fit(model, optimizer, data[3:])
        return losses, model.state_dict()

    with torch.backends.cudnn.flags(deterministic=True, benchmark=False):
        losses, model = continued(resume=True)
        expected_losses, expected = continued(resume=False)
    assert losses == expected_losses
    for name, value in expected.items():
        assert torch.equal(model[name], value), name


def trained():
    xs = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))]
    optimizer = Mu2SGD(xs, 0.1)

    def closure():
        optimizer.zero_grad()
        loss = sum((x**2).sum() for x in xs)
        loss.backward()
        return loss

    for _ in range(2):
        optimizer.step(closure)
    return xs, optimizer, closure


def test_parameter_added_later_starts_with_its_own_gradient():
    xs, optimizer, closure = trained()
    xs.append(nn.Parameter(torch.full((3,), 2.0)))
    optimizer.add_param_group({"params": [xs[-1]]})
    optimizer.step(closure)
    assert [int(optimizer.state[x]["step"]) for x in xs] == [3, 3, 1]
    assert torch.equal(optimizer.state[xs[-1]]["momentum"], torch.full((3,), 4.0))


@pytest.mark.parametrize("shape", [(7,), ()])
@pytest.mark.parametrize("kind", [Mu2SGD, torch.optim.Adam])
def test_state_of_bfloat16_parameters_is_restored(kind, shape):
    """Records have no such dtype: float32 holds its numbers exactly."""
    x = nn.Parameter(torch.full(shape, 0.7).bfloat16())
    first, second = kind([x], lr=0.1), kind([x], lr=0.1)

    def closure():
        x.grad = None
        loss = (x**3).sum()
        loss.backward()
        return loss

    for _ in range(3):
        first.step(closure)
    assert load_state_record(second, state_record(first))
    for name, value in first.state[x].items():
        assert second.state[x][name].dtype == value.dtype
        assert torch.equal(second.state[x][name], value)


def spoilt(record, **changes):
    """The record with other arrays, or without those that are None."""
    for name, array in changes.items():
        key = f"Mu2SGD.{name.replace('_', '.')}"
        del record[key]
        if array is not None:
            record[key] = array
    return record


@pytest.mark.parametrize(
    "spoil",
    [
        lambda r: None,
        lambda r: ArrayRecord({f"Adam{key[6:]}": r[key] for key in r}),
        lambda r: ArrayRecord({"nonsense": r["Mu2SGD.0.lead"]}),
        lambda r: ArrayRecord({f"Mu2SGD.7{key[8:]}": r[key] for key in r}),
        lambda r: spoilt(r, **{"0_lead": Array(np.ones(4, np.float32))}),
        lambda r: spoilt(r, **{"0_lead": Array(np.ones(3))}),
        lambda r: spoilt(r, **{"0_momentum": Array(np.float32([1, np.nan, 1]))}),
        lambda r: spoilt(
            r, **{"0_lead": Array("float32", (3,), "numpy.ndarray", b"garbage")}
        ),
        lambda r: spoilt(r, **{"0_lead": Array("float32", (3,), "gguf", b"")}),
        lambda r: spoilt(r, **{"1_lead": None}),
    ],
    ids=[
        "lost",
        "of another optimizer",
        "no key of ours",
        "of a parameter that is not there",
        "wrong shape",
        "wrong dtype",
        "not finite",
        "unreadable",
        "unknown serialisation",
        "part missing",
    ],
)
def test_lost_or_misfitting_state_is_discarded(spoil, caplog):
    xs, optimizer, closure = trained()
    record = spoil(state_record(optimizer))
    assert load_state_record(optimizer, record) is False
    assert ("starts without state" in caplog.text) == (record is not None)
    assert not optimizer.state
    optimizer.step(closure)
    for x in xs:
        assert int(optimizer.state[x]["step"]) == 1
        assert torch.equal(optimizer.state[x]["momentum"], x.grad)


def test_loading_keeps_the_hyper_parameters_of_the_optimizer():
    xs, optimizer, _ = trained()
    fresh = Mu2SGD(xs, 0.01, weight_decay=0.5)
    assert load_state_record(fresh, state_record(optimizer))
    assert fresh.param_groups[0]["lr"] == 0.01
    assert fresh.param_groups[0]["weight_decay"] == 0.5
    for x in xs:
        for name, value in optimizer.state[x].items():
            assert torch.equal(fresh.state[x][name], value), name


def test_momentum_of_torch_sgd_is_restored():
    x = nn.Parameter(torch.ones(3))
    x.grad = torch.arange(3.0)
    optimizer = torch.optim.SGD([x], 0.1, momentum=0.9, dampening=0.9)
    optimizer.step()
    fresh = torch.optim.SGD([x], 0.1, momentum=0.9, dampening=0.9)
    assert load_state_record(fresh, state_record(optimizer))
    assert torch.equal(fresh.state[x]["momentum_buffer"], torch.arange(3.0))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_schedule_is_parsed_from_its_spelling(schedule):
    assert parse_schedule(str(schedule)) == schedule


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x: Mu2SGD(x, 0.0), "`lr` should be positive"),
        (lambda x: Mu2SGD(x, 0.1, weight_decay=-1.0), "`weight_decay`"),
        (lambda x: Mu2SGD(x, 0.1, clip=0.0), "`clip`"),
        (lambda x: Mu2SGD(x, 0.1, radius=-2.0), "Found `radius = -2.0`"),
        (lambda x: Mu2SGD(x, 0.1, "papr"), "Did you mean `paper`"),
        (lambda x: Mu2SGD(x, 0.1).step(), "`closure`"),
        (lambda x: Fixed(storm_beta=0.0), "`storm_beta` should be in"),
        (lambda x: Fixed(gamma=1.5), "`gamma`"),
        (lambda x: Floored(floor=-0.1), "`floor`"),
        (lambda x: Floored(floor="0.1"), "`floor` should be of type float"),
        (lambda x: Unaveraged("paper"), "`base` should be of type Schedule"),
        (lambda x: Mu2SGD(x, float("inf")), "`lr` should be positive and finite"),
    ],
)
def test_invalid_values_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make([nn.Parameter(torch.ones(2))])


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_schedules_are_values(schedule):
    """They cannot be changed under the clients that share them, and are dict keys."""
    with pytest.raises(FrozenInstanceError):
        schedule.gamma = 1.0
    assert {schedule: 1}[copy.deepcopy(schedule)] == 1
