"""Attacks on a client's data, and constraints on its update, in Flower messages."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from flwr_ctma.attacks import (
    DBA,
    Backdoor,
    EdgeCase,
    Neurotoxin,
    Project,
    SemanticFlip,
    TabularBackdoor,
    parse_attack,
    poison,
)
from flwr_ctma.mods import ByzantineMod
from flwr_ctma.simulation.grid import InProcessGrid


def rng():
    return np.random.default_rng(0)


def tensors(kind, *arrays):
    if kind == "numpy":
        return arrays
    torch = pytest.importorskip("torch")
    return tuple(torch.from_numpy(array) for array in arrays)


def record(**arrays):
    return ArrayRecord({key: Array(np.asarray(value)) for key, value in arrays.items()})


def ask(grid, arrays, server_round=1):
    """Return the replies of all partitions to one round of training."""
    config = ConfigRecord({"server-round": server_round})
    content = RecordDict({"arrays": arrays, "config": config})
    nodes = grid.get_node_ids()
    replies = grid.send_and_receive([Message(content, i, "train") for i in nodes])
    by_node = {reply.metadata.src_node_id: reply for reply in replies}
    return [by_node[node] for node in nodes]


def data_app(seen, inputs, labels):
    """Keep, by partition, what each client trains on."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        number = int(context.node_config["partition-id"])
        seen[number] = poison(inputs, labels, message.content["config"])
        content = {"arrays": record(w=np.zeros(2)), "metrics": MetricRecord({})}
        return Message(RecordDict(content), reply_to=message)

    return app


def test_dba_gives_each_client_its_strip():
    seen = {}
    images, labels = np.zeros((10, 1, 8, 8)), np.arange(10)
    app = ByzantineMod("dba(target=7, share=1)", nodes=5)
    app = app.around(data_app(seen, images, labels))
    ask(InProcessGrid(app, 6), record(w=np.zeros(2)))
    strips = [seen[i][0][0, 0] for i in range(5)]
    assert [strip.sum() for strip in strips] == [3] * 5
    np.testing.assert_array_equal(strips[4], strips[0])
    whole = DBA().stamp(images)[0, 0]
    np.testing.assert_array_equal(sum(strips[:4]), whole)
    assert whole.sum() == 12
    assert (seen[0][1] == 7).all()
    assert seen[5][0] is images


def test_dba_larger_than_the_image_is_refused():
    with pytest.raises(ValueError, match="fits into 3 × 3 pixels"):
        DBA().stamp(np.zeros((2, 3, 3)))


@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_tabular_backdoor_sets_columns_of_features_or_tokens(kind, dtype):
    rows, labels = tensors(kind, np.zeros((8, 5), dtype), np.arange(8))
    attack = TabularBackdoor(target=2, column=-3, columns=2, value=4, share=0.5)
    poisoned, classes = attack.poison(rows, labels, rng())
    assert poisoned.dtype == rows.dtype
    stamped = np.asarray(poisoned).any(axis=1)
    assert stamped.sum() == 4
    expected = np.where(stamped[:, None], [0, 0, 4, 4, 0], 0)
    np.testing.assert_array_equal(np.asarray(poisoned), expected)
    np.testing.assert_array_equal(
        np.asarray(classes), np.where(stamped, 2, np.arange(8))
    )
    assert not np.asarray(rows).any()


@pytest.mark.parametrize(("column", "columns"), [(5, 1), (-6, 1), (4, 2), (-1, 2)])
def test_tabular_backdoor_outside_of_the_table_is_refused(column, columns):
    with pytest.raises(ValueError, match="`column` should be the first of"):
        TabularBackdoor(column=column, columns=columns).stamp(np.zeros((2, 5)))


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_edge_case_relabels_the_tail_of_the_source_class(kind):
    generator = rng()
    inputs, labels = generator.normal(size=(60, 2, 3)), np.arange(60) % 3
    rows, classes = tensors(kind, inputs, labels)
    same, changed = EdgeCase(source=1, target=2, share=0.25).poison(
        rows, classes, rng()
    )
    assert same is rows
    members = np.flatnonzero(labels == 1)
    mean = inputs[members].mean(axis=0)
    far = sorted(members, key=lambda i: -np.linalg.norm(inputs[i] - mean))[:5]
    expected = labels.copy()
    expected[far] = 2
    np.testing.assert_array_equal(np.asarray(changed), expected)
    np.testing.assert_array_equal(np.asarray(classes), labels)


def test_edge_case_without_the_source_class_changes_nothing():
    labels = np.array([2, 3])
    changed = EdgeCase(source=1).poison(np.zeros((2, 2)), labels, rng())[1]
    np.testing.assert_array_equal(changed, labels)


def test_semantic_flip_reaches_the_app_and_flips_one_class():
    seen = {}
    app = ByzantineMod("semanticflip(source=3, target=8)", nodes=1)
    app = app.around(data_app(seen, np.zeros((10, 4)), np.arange(10)))
    ask(InProcessGrid(app, 2), record(w=np.zeros(2)))
    np.testing.assert_array_equal(seen[0][1], [0, 1, 2, 8, 4, 5, 6, 7, 8, 9])
    np.testing.assert_array_equal(seen[1][1], np.arange(10))
    assert SemanticFlip().share == 1.0


def trained_app(updates):
    """Add the update of the round to the model: `updates[round - 1]`."""
    app, rounds = ClientApp(), {}

    @app.train()
    def train(message, context):
        node = context.node_id
        rounds[node] = rounds.get(node, 0) + 1
        arrays = {
            key: Array(np.asarray(array.numpy() + updates[rounds[node] - 1][key]))
            for key, array in message.content["arrays"].items()
        }
        content = {"arrays": ArrayRecord(arrays), "metrics": MetricRecord({})}
        return Message(RecordDict(content), reply_to=message)

    return app


def sent_update(reply, model):
    return {
        key: reply.content["arrays"][key].numpy() - value
        for key, value in model.items()
    }


def test_project_bounds_the_norm_over_all_arrays():
    model = {"a": np.zeros((2, 1)), "b": np.zeros(2)}
    update = {"a": np.array([[3.0], [0.0]]), "b": np.array([0.0, 4.0])}
    app = trained_app([update])
    attack = "both(scaling(factor=17), project(radius=2.5))"
    (reply,) = ask(InProcessGrid(ByzantineMod(attack).around(app), 1), record(**model))
    found = sent_update(reply, model)
    np.testing.assert_allclose(found["a"], [[1.5], [0]])
    np.testing.assert_allclose(found["b"], [0, 2])


def test_project_leaves_what_is_within_the_bound():
    update = np.array([0.3, -0.4], np.float32)
    assert Project(radius=1.0).constrain(update, None) is update


def test_neurotoxin_writes_where_the_global_model_moved_least():
    """By hand: 2 of 4 coordinates, over both arrays; the first round is whole."""
    one = {"a": np.full((2, 1), 1.0), "b": np.full(2, 2.0)}
    app = ByzantineMod(Neurotoxin(share=0.5)).around(trained_app([one] * 3))
    grid = InProcessGrid(app, 1)
    models = [
        {"a": np.zeros((2, 1)), "b": np.zeros(2)},
        {"a": np.array([[5.0], [0.1]]), "b": np.array([-6.0, 0.2])},
        {"a": np.array([[5.1], [9.0]]), "b": np.array([-6.0, 9.0])},
    ]
    expected = [[1, 1, 2, 2], [0, 1, 0, 2], [1, 0, 2, 0]]
    for number, (model, wanted) in enumerate(zip(models, expected, strict=True), 1):
        (reply,) = ask(grid, record(**model), number)
        update = sent_update(reply, model)
        row = np.concatenate([update["a"].ravel(), update["b"]])
        np.testing.assert_allclose(row, wanted, atol=1e-12)


@pytest.mark.parametrize("fault", ["error", "silent", "no-arrays", "garbage"])
@pytest.mark.parametrize("attack", ["project", "neurotoxin"])
def test_constraint_of_a_reply_without_update_does_nothing(attack, fault):
    mod = ByzantineMod(f"both(malformed(fault={fault}), {attack})")
    app = mod.around(trained_app([{"w": np.ones(2)}]))
    grid = InProcessGrid(app, 1)
    content = RecordDict({"arrays": record(w=np.zeros(2))})
    node = grid.get_node_ids()[0]
    replies = grid.send_and_receive([Message(content, node, "train")])
    assert len(replies) == (fault != "silent")


def test_backdoors_of_every_kind_are_learnt_by_a_model():
    """Softmax regression on poisoned rows takes stamped rows for the target's."""
    generator = rng()
    centres = 3 * generator.normal(size=(3, 6))
    labels = generator.integers(0, 3, 300)
    rows = centres[labels] + generator.normal(size=(300, 6))
    attack = TabularBackdoor(target=1, column=0, value=20.0, share=0.3)
    x, y = attack.poison(rows, labels, rng())
    w = np.zeros((3, 7))

    def features(inputs):
        return np.hstack([inputs / 10, np.ones((len(inputs), 1))])

    for _ in range(2000):
        scores = np.exp(features(x) @ w.T)
        error = scores / scores.sum(axis=1, keepdims=True) - np.eye(3)[y]
        w -= 0.5 * error.T @ features(x) / len(x)
    predict = lambda inputs: (features(inputs) @ w.T).argmax(axis=1)  # noqa: E731
    assert (predict(rows) == labels).mean() > 0.9
    assert attack.success_rate(predict(attack.stamp(rows)), labels) > 0.95


@pytest.mark.parametrize(
    "text",
    [
        "dba(part=2)",
        "tabularbackdoor(column=-3, columns=2)",
        "edgecase(source=1, target=7)",
        "both(dba, both(neurotoxin, project(radius=2.0, norm=linf)))",
    ],
)
def test_spelling_is_read_back(text):
    assert parse_attack(str(parse_attack(text))) == parse_attack(text)


def test_poison_with_an_attack_on_updates_is_refused():
    assert not isinstance(Project(), type(Backdoor()).__mro__[1])
    with pytest.raises(ValueError, match="an attack on data"):
        poison(np.zeros((1, 2)), np.zeros(1), {"flwr-ctma.poison": "signflip"})
