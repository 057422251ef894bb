"""ByzantineMod: any ClientApp, of either API, answers as an attack does."""

import contextlib
import logging

import numpy as np
import pytest
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.common import ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg as LegacyFedAvg

from flwr_ctma.attacks import (
    FAULTS,
    Backdoor,
    LabelFlip,
    SignFlip,
    parse_attack,
    poison,
)
from flwr_ctma.mods import ByzantineMod
from flwr_ctma.simulation.grid import InProcessGrid

MODEL = {
    "w": np.arange(6, dtype=np.float32).reshape(3, 2),
    "b": np.zeros(3, np.float64),
    "steps": np.array(7),
}


def honest_app(mods=()):
    """Every client adds its partition + 1 to the model, and 1 to the step counter."""
    app = ClientApp(mods=list(mods))

    @app.train()
    def train(message, context):
        by = int(context.node_config["partition-id"]) + 1
        model = message.content["arrays"].to_numpy_ndarrays()
        trained = dict(
            zip(MODEL, [model[0] + by, model[1] + by, model[2] + 1], strict=True)
        )
        context.state["visits"] = MetricRecord({"n": 1})
        return reply(message, trained, {"num-examples": 10, "loss": 0.5})

    @app.evaluate()
    def evaluate(message, context):
        return reply(message, None, {"num-examples": 10, "loss": 0.5, "all": [1, 2]})

    @app.query()
    def query(message, context):
        return reply(message, None, {"partition": 1})

    return app


def reply(message, arrays, metrics):
    content = RecordDict({"metrics": MetricRecord(metrics)})
    if arrays is not None:
        content["arrays"] = record(arrays)
    return Message(content, reply_to=message)


def record(arrays):
    return ArrayRecord({k: _array(v) for k, v in arrays.items()})


def _array(values):
    from flwr.app import Array

    return Array(np.asarray(values))


def ask(grid, server_round=1, kind="train", model=MODEL):
    """One round: the replies by partition, None for the silent."""
    config = ConfigRecord({"server-round": server_round})
    content = RecordDict({"arrays": record(model), "config": config})
    nodes = grid.get_node_ids()
    replies = grid.send_and_receive([Message(content, i, kind) for i in nodes])
    found = {message.metadata.src_node_id: message for message in replies}
    return [found.get(node) for node in nodes]


def updates(message, model=MODEL):
    """What a reply adds to the model, by array."""
    arrays = message.content["arrays"]
    return {key: arrays[key].numpy() - model[key] for key in arrays}


def grid_of(attack, nodes=1, num_nodes=2, seed=0):
    return InProcessGrid(
        ByzantineMod(attack, nodes, seed).around(honest_app()), num_nodes
    )


@pytest.mark.parametrize(
    ("attack", "expected"),
    [
        ("none", 1.0),
        ("signflip", -1.0),
        ("zero", 0.0),
        ("scaling(factor=5)", 5.0),
        ("both(signflip, scaling(factor=5))", -5.0),
        ("then(signflip, zero, start=1)", 0.0),
        ("during(signflip, start=2)", 1.0),
        ("nonfinite", np.nan),
        ("nonfinite(value=-inf)", -np.inf),
        ("noise(std=0, mean=3)", 3.0),
    ],
)
def test_update_is_attacked_and_the_rest_is_honest(attack, expected):
    bad, good = ask(grid_of(attack))
    for key in ("w", "b"):
        np.testing.assert_allclose(
            updates(bad)[key], np.full(MODEL[key].shape, expected)
        )
        np.testing.assert_array_equal(updates(good)[key], np.full(MODEL[key].shape, 2))
        assert bad.content["arrays"][key].numpy().dtype == MODEL[key].dtype
    assert updates(bad)["steps"] == 1
    assert bad.content["metrics"] == good.content["metrics"]


def test_update_of_an_array_that_was_not_sent_is_the_array():
    """A client that sends its momentum under a name of its own flips the momentum."""
    app = ClientApp(mods=[ByzantineMod("signflip")])

    @app.train()
    def train(message, context):
        return reply(message, {"momentum": np.array([1.0, 2.0])}, {})

    (message,) = ask(InProcessGrid(app, 1))
    momentum = message.content["arrays"]["momentum"].numpy()
    np.testing.assert_array_equal(momentum, [-1.0, -2.0])


def test_what_the_server_sent_is_not_changed():
    """Messages to different nodes may share their content."""
    for attack in (
        "signflip",
        "labelflip",
        "nonfinite",
        "malformed(fault=missing-key)",
    ):
        content = RecordDict(
            {"arrays": record(MODEL), "config": ConfigRecord({"server-round": 1})}
        )
        before = {k: content["arrays"][k].data for k in MODEL}
        app = honest_app([ByzantineMod(attack)])
        grid = InProcessGrid(app, 1)
        context = Context(1, 2, {"partition-id": 0}, RecordDict(), {})
        message = Message(content, grid.get_node_ids()[0], "train")
        app(message, context)
        assert {k: content["arrays"][k].data for k in MODEL} == before
        assert dict(content["config"]) == {"server-round": 1}


def test_chance_depends_on_seed_partition_and_round_only():
    def draws(seed, server_round):
        replies = ask(grid_of("noise", 2, 2, seed), server_round)
        return [updates(m)["w"].ravel() for m in replies]

    first = draws(0, 1)
    np.testing.assert_array_equal(first, draws(0, 1))
    different = [*first, *draws(1, 1), *draws(0, 2)]
    assert len({d.tobytes() for d in different}) == len(different)


def test_attacks_happen_with_their_probability():
    """Each client draws for itself, in every round anew."""
    grid = grid_of("during(signflip, probability=0.25)", 20, 20)
    flipped = [
        updates(m)["b"][0] < 0 for r in range(1, 21) for m in ask(grid, server_round=r)
    ]
    # 400 draws: mean 100, standard deviation 8.7
    assert 65 < sum(flipped) < 135


def test_attack_changes_by_round():
    grid = grid_of("then(signflip, during(zero, start=4), start=3)")
    sent = [updates(ask(grid, server_round=r)[0])["b"][0] for r in range(1, 6)]
    assert sent == [-1, -1, 1, 0, 0]


def test_round_is_counted_by_the_node_where_the_server_does_not_tell():
    grid = grid_of("during(signflip, start=3)", 1, 1)

    def update():
        node = grid.get_node_ids()[0]
        content = RecordDict({"arrays": record(MODEL)})
        (message,) = grid.send_and_receive([Message(content, node, "train")])
        return updates(message)["b"][0]

    assert [update() for _ in range(4)] == [1, 1, -1, -1]


@pytest.mark.parametrize(
    ("nodes", "malicious"),
    [
        (None, [0, 1, 2, 3]),
        (0, []),
        (2, [0, 1]),
        ({1, 3}, [1, 3]),
        (lambda context: context.node_id % 2 == 0, [0, 2]),
    ],
)
def test_nodes(nodes, malicious):
    replies = ask(grid_of(SignFlip(), nodes, 4))
    found = [i for i, m in enumerate(replies) if updates(m)["b"][0] < 0]
    assert found == malicious


def test_a_partition_cannot_decide_where_there_is_none():
    context = Context(1, 2, {}, RecordDict(), {})
    with pytest.raises(ValueError, match="function of the Context"):
        ByzantineMod("signflip", nodes=1).is_malicious(context)


@pytest.mark.parametrize(
    "arguments", [{"attack": 3}, {"nodes": -1}, {"seed": -1}, {"attack": "sign-flip"}]
)
def test_wrong_arguments_are_named(arguments):
    name = next(iter(arguments))
    with pytest.raises(ValueError, match=f"Parameter `{name}` should be"):
        ByzantineMod(**{"attack": "signflip", **arguments})


def test_other_messages_pass():
    (message, _) = ask(grid_of("malformed(fault=no-metrics)"), kind="query")
    assert message.content["metrics"]["partition"] == 1


def test_evaluation_is_honest_unless_the_attack_lies_there():
    honest = ask(grid_of("none"), kind="evaluate")[0].content["metrics"]
    assert ask(grid_of("signflip"), kind="evaluate")[0].content["metrics"] == honest
    lies = ask(grid_of("lyingmetrics(value=9)"), kind="evaluate")[0].content["metrics"]
    assert dict(lies) == {"num-examples": 10, "loss": 9.0, "all": [9.0, 9.0]}
    both = "both(lyingmetrics(value=0), inflatedweight(factor=3))"
    lies = ask(grid_of(both), kind="evaluate")[0].content["metrics"]
    assert dict(lies) == {"num-examples": 30, "loss": 0.0, "all": [0.0, 0.0]}


def test_inflated_weight_beyond_64_bits_is_a_float():
    (message, _) = ask(grid_of("inflatedweight(factor=1e30)"))
    assert message.content["metrics"]["num-examples"] == 1e31
    assert isinstance(message.content["metrics"]["num-examples"], float)


def test_replay_replays_what_it_sent_before():
    grid = grid_of("replay(delay=2)")
    models = [{**MODEL, "b": np.full(3, float(10 * r))} for r in range(5)]
    sent = [
        ask(grid, r, model=m)[0].content["arrays"]["b"].numpy()[0]
        for r, m in enumerate(models)
    ]
    assert sent == [1, 1, 1, 11, 21]


def test_replay_survives_silence_and_errors():
    for fault in ("silent", "error"):
        grid = grid_of(f"both(malformed(fault={fault}), replay)")
        message = ask(grid)[0]
        assert message is None or message.has_error()


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_every_fault_changes_the_reply_of_one_client(fault, kind):
    honest = ask(grid_of("none"), kind=kind)
    bad, good = ask(grid_of(f"malformed(fault={fault})"), kind=kind)
    assert good.content == honest[1].content
    if fault == "silent":
        assert bad is None
    elif fault == "error":
        assert bad.has_error()
    elif kind == "train" or "weight" in fault or "metric" in fault or "loss" in fault:
        assert bad.content != honest[0].content
    else:
        assert bad.content == honest[0].content


def test_negative_weights_of_equal_clients_sum_to_one_or_zero():
    for fault, expected in (("negative-weight", 1), ("cancelling-weight", 0)):
        replies = ask(grid_of(f"malformed(fault={fault})", 1, 12))
        weights = [m.content["metrics"]["num-examples"] for m in replies]
        assert sum(weights) == expected
        assert weights[1:] == [10] * 11


def softmax_app(poisoned_by=None):
    """Three steps of softmax regression on a partition's own data, Message API."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        rng = np.random.default_rng(int(context.node_config["partition-id"]))
        x, y = rng.normal(size=(20, 4)), rng.integers(0, 3, 20)
        if poisoned_by is not None:
            y = poisoned_by(y)
        w, b = message.content["arrays"].to_numpy_ndarrays()
        for _ in range(3):
            scores = np.exp(x @ w.T + b)
            error = scores / scores.sum(axis=1, keepdims=True) - np.eye(3)[y]
            w, b = w - 0.5 * error.T @ x / 20, b - 0.5 * error.mean(axis=0)
        return reply(message, {"fc.weight": w, "fc.bias": b}, {"num-examples": 20})

    return app


def test_label_flip_needs_no_help_from_the_app():
    """Reversing the classes of the last layer is training on reversed labels."""
    rng = np.random.default_rng(0)
    model = {"fc.weight": rng.normal(size=(3, 4)), "fc.bias": rng.normal(size=3)}
    by_data = ask(InProcessGrid(softmax_app(lambda y: 2 - y), 2), model=model)
    by_mod = ask(
        InProcessGrid(ByzantineMod(LabelFlip()).around(softmax_app()), 2), model=model
    )
    for expected, found in zip(by_data, by_mod, strict=True):
        for key in model:
            np.testing.assert_allclose(
                found.content["arrays"][key].numpy(),
                expected.content["arrays"][key].numpy(),
                rtol=1e-12,
            )


def test_label_flip_of_a_binary_logit_changes_its_sign():
    """One output, σ(xw + b): training on 1 − y."""

    def app_of(flip):
        app = ClientApp()

        @app.train()
        def train(message, context):
            rng = np.random.default_rng(0)
            x, y = rng.normal(size=(20, 4)), rng.integers(0, 2, 20)
            y = 1 - y if flip else y
            w, b = message.content["arrays"].to_numpy_ndarrays()
            error = 1 / (1 + np.exp(-(x @ w.T + b)[:, 0])) - y
            trained = {"w": w - error @ x, "b": b - error.sum()}
            return reply(message, trained, {"num-examples": 20})

        return app

    model = {"w": np.array([[0.3, -1.0, 2.0, 0.0]]), "b": np.array([0.5])}
    (expected,) = ask(InProcessGrid(app_of(flip=True), 1), model=model)
    app = ByzantineMod("labelflip").around(app_of(flip=False))
    (found,) = ask(InProcessGrid(app, 1), model=model)
    for key in model:
        np.testing.assert_allclose(
            updates(found, model)[key], updates(expected, model)[key]
        )


def test_label_flip_of_a_network_with_an_adaptive_optimizer():
    """Adam, momentum and clipping see the same coordinates in another order."""
    torch = pytest.importorskip("torch")

    def network():
        torch.manual_seed(0)
        return torch.nn.Sequential(
            torch.nn.Conv2d(1, 4, 3),
            torch.nn.BatchNorm2d(4),
            torch.nn.ReLU(),
            torch.nn.Flatten(),
            torch.nn.Linear(16, 5),
        ).double()

    def app_of(flip):
        app = ClientApp()

        @app.train()
        def train(message, context):
            net = network()
            net.load_state_dict(message.content["arrays"].to_torch_state_dict())
            generator = torch.Generator().manual_seed(1)
            x = torch.randn(20, 1, 4, 4, generator=generator, dtype=torch.double)
            y = torch.randint(0, 5, (20,), generator=generator)
            optimizer = torch.optim.Adam(net.parameters(), 0.01)
            for _ in range(5):
                optimizer.zero_grad()
                loss = torch.nn.functional.cross_entropy(net(x), 4 - y if flip else y)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(net.parameters(), 0.5)
                optimizer.step()
            trained = {k: v.numpy() for k, v in net.state_dict().items()}
            return reply(message, trained, {"num-examples": 20, "loss": loss.item()})

        return app

    model = {k: v.numpy() for k, v in network().state_dict().items()}
    (expected,) = ask(InProcessGrid(app_of(flip=True), 1), model=model)
    app = ByzantineMod("labelflip").around(app_of(flip=False))
    (found,) = ask(InProcessGrid(app, 1), model=model)
    for key in model:
        np.testing.assert_allclose(
            found.content["arrays"][key].numpy(),
            expected.content["arrays"][key].numpy(),
            rtol=1e-9,
            atol=1e-12,
        )
    assert found.content["metrics"]["loss"] == pytest.approx(
        expected.content["metrics"]["loss"]
    )


def test_faults_of_one_array_are_what_they_say():
    def first(fault):
        bad = ask(grid_of(f"malformed(fault={fault})"))[0]
        return bad.content["arrays"]["w"]

    assert first("wrong-shape").numpy().shape == (7,)
    assert first("size-zero").numpy().size == 0
    assert first("complex").numpy().dtype == np.complex64
    assert first("string").numpy().dtype.kind == "U"
    assert np.isnan(first("one-nan").numpy()).sum() == 1
    assert (first("huge").numpy() == np.float32(1e30)).all()
    with pytest.raises(TypeError):
        first("unknown-stype").numpy()
    for fault in ("pickle", "garbage", "lying-header"):
        with pytest.raises(ValueError, match=r"allow_pickle|pickled|data|reshape"):
            first(fault).numpy()


def image_app(seen, calls_poison=True):
    app = ClientApp()

    @app.train()
    def train(message, context):
        images, labels = np.zeros((10, 1, 4, 4)), np.arange(10)
        if calls_poison:
            images, labels = poison(images, labels, message.content["config"])
        seen.append((images, labels))
        return reply(message, MODEL, {"num-examples": 10})

    return app


def test_backdoor_poisons_what_the_app_passes_through_it():
    seen = []
    app = ByzantineMod(Backdoor(target=7, size=2), nodes=1).around(image_app(seen))
    ask(InProcessGrid(app, 2))
    (images, labels), (honest_images, honest_labels) = seen
    assert not honest_images.any()
    np.testing.assert_array_equal(honest_labels, np.arange(10))
    stamped = images[:, 0, 2:, 2:].all(axis=(1, 2))
    assert stamped.sum() == 5
    assert images.sum() == 5 * 4
    np.testing.assert_array_equal(labels, np.where(stamped, 7, np.arange(10)))


def test_backdoor_is_an_error_where_it_would_do_nothing():
    app = ByzantineMod(Backdoor()).around(image_app([], calls_poison=False))
    (message,) = ask(InProcessGrid(app, 1))
    assert "flwr_ctma.attacks.poison" in message.error.reason


class Legacy(NumPyClient):
    """Adds 1 to the model."""

    def fit(self, parameters, config):
        if "images" in config:
            poison(np.zeros((2, 4, 4)), np.zeros(2), config)
        return [p + 1 for p in parameters], 10, {"train_loss": 0.5}

    def evaluate(self, parameters, config):
        return 0.25, 10, {"accuracy": 0.75, "name": "legacy"}


def run_legacy(attack, config=None):
    """Two rounds of Flower's legacy server; what it was told in the last, by client."""
    fits, evaluations = {}, {}

    class Recorder(LegacyFedAvg):
        def aggregate_fit(self, server_round, results, failures):
            for proxy, res in results:
                model = parameters_to_ndarrays(res.parameters)
                fits[proxy.node_id] = (model, res.num_examples, res.metrics)
            return None, {}

        def aggregate_evaluate(self, server_round, results, failures):
            for proxy, res in results:
                said = (res.loss, res.num_examples, res.metrics)
                evaluations[proxy.node_id] = said
            return None, {}

    def server_fn(context):
        strategy = Recorder(
            min_fit_clients=2,
            min_evaluate_clients=2,
            min_available_clients=2,
            initial_parameters=ndarrays_to_parameters([np.zeros((2, 2), np.float32)]),
            on_fit_config_fn=lambda r: config or {},
        )
        return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=2))

    app = ClientApp(
        client_fn=lambda context: Legacy().to_client(),
        mods=[ByzantineMod(attack, nodes=1)],
    )
    grid = InProcessGrid(app, 2)
    run = Context(1, 1, {}, RecordDict(), {})
    logging.disable(logging.WARNING)
    with contextlib.ExitStack() as stack:
        stack.callback(logging.disable, logging.NOTSET)
        ServerApp(server_fn=server_fn)(grid, run)
    nodes = grid.get_node_ids()
    return [fits.get(i) for i in nodes], [evaluations.get(i) for i in nodes]


def test_legacy_clients_are_attacked_the_same_way():
    attack = "both(signflip, both(inflatedweight(factor=3), lyingmetrics(value=9)))"
    fits, evaluations = run_legacy(attack)
    (bad, good), (bad_said, good_said) = fits, evaluations
    np.testing.assert_array_equal(bad[0][0], -np.ones((2, 2)))
    assert bad[0][0].dtype == np.float32
    assert bad[1:] == (30, {"train_loss": 9.0})
    np.testing.assert_array_equal(good[0][0], np.ones((2, 2)))
    assert good[1:] == (10, {"train_loss": 0.5})
    assert bad_said == (9.0, 30, {"accuracy": 9.0, "name": "legacy"})
    assert good_said == (0.25, 10, {"accuracy": 0.75, "name": "legacy"})


def test_legacy_rounds_are_known():
    (bad, _), _ = run_legacy("during(signflip, start=2)")
    np.testing.assert_array_equal(bad[0][0], -np.ones((2, 2)))
    (bad, _), _ = run_legacy("during(signflip, start=3)")
    np.testing.assert_array_equal(bad[0][0], np.ones((2, 2)))


def test_legacy_clients_can_be_poisoned():
    (bad, good), _ = run_legacy("backdoor", {"images": True})
    assert bad is not None
    assert good is not None
    (bad, good), _ = run_legacy("backdoor")
    assert bad is None
    assert good is not None


def test_spelling_is_read_back():
    for text in (
        "during(both(backdoor(target=3), scaling(factor=17.0)), start=5, stop=9)",
        "then(signflip, none, start=3)",
    ):
        attack = parse_attack(text)
        assert parse_attack(str(attack)) == attack
