"""What one faulty client of twelve can do to a round: nothing but lose its reply."""

import io
import pickle
import re
from importlib.metadata import version

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import (
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedProx,
    FedYogi,
)

from flwr_ctma.simulation.grid import InProcessGrid
from flwr_ctma.strategy import RobustStrategy

N, F = 12, 2
SHARED = {
    "w": np.linspace(-1, 1, 60, dtype=np.float32).reshape(3, 20),
    "scale": np.float32(0.5),
    "bn.running_var": np.ones(3, np.float32),
    "bn.num_batches_tracked": np.int64(10),
}


def record(arrays):
    return ArrayRecord({key: Array(np.asarray(a)) for key, a in arrays.items()})


def trained(client):
    """Arrays of an honest client: all near each other, none the same."""
    rng = np.random.default_rng(client)
    return {
        "w": SHARED["w"] + rng.normal(0.1, 0.01, (3, 20)).astype(np.float32),
        "scale": np.float32(0.6 + 0.001 * client),
        "bn.running_var": np.full(3, 1.5 + 0.01 * client, np.float32),
        "bn.num_batches_tracked": np.int64(14),
    }


def replied(client):
    metrics = MetricRecord({"num-examples": 10, "loss": 1.0 + 0.01 * client})
    return RecordDict({"arrays": record(trained(client)), "metrics": metrics})


def with_data(data, stype="numpy.ndarray"):
    def spoil(content):
        content["arrays"]["w"] = Array("float32", (3, 20), stype, data)

    return spoil


def with_array(change):
    def spoil(content):
        content["arrays"]["w"] = Array(change(content["arrays"]["w"].numpy()))

    return spoil


def with_metric(key, value):
    def spoil(content):
        content["metrics"][key] = value

    return spoil


def with_record(name, new):
    def spoil(content):
        content[name] = new

    return spoil


def without(name, key=None):
    def spoil(content):
        del (content if key is None else content[name])[key or name]

    return spoil


def renamed(content):
    for name in list(content):
        content[f"my {name}"] = content.pop(name)


def emptied(content):
    content["arrays"] = ArrayRecord()


def one_nan(array):
    array = array.copy()
    array[1, 1] = np.nan
    return array


def taken_over(num_examples):
    def spoil(content):
        with_array(lambda w: w - 1e6)(content)
        with_metric("num-examples", num_examples)(content)

    return spoil


def poisoned_buffer(content):
    content["arrays"]["bn.running_var"] = Array(np.full(3, -1e9, np.float32))


def raising(content):
    raise RuntimeError("no memory left")


def silent(content):
    return None


def header(shape):
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def saved(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def with_keys(name, keys):
    def spoil(content):
        content[name].update(dict.fromkeys(keys, next(iter(content[name].values()))))

    return spoil


THOUSANDS, MEGABYTE = [f"layer{i}" for i in range(5000)], ["k\n" * 500_000]
METRICS = {
    "extra metric key": (with_metric("accuracy", 1.0), "misreporting"),
    "no num-examples": (without("metrics", "num-examples"), "misreporting"),
    "list num-examples": (with_metric("num-examples", [1, 2]), "misreporting"),
    "num-examples -109": (with_metric("num-examples", -109), "counted"),
    "num-examples -110": (with_metric("num-examples", -110), "counted"),
    "num-examples NaN": (with_metric("num-examples", float("nan")), "misreporting"),
    "num-examples 1e30": (with_metric("num-examples", 1e30), "counted"),
    "loss is a list": (with_metric("loss", [1.0, 2.0]), "misreporting"),
    "5 000 metric keys": (with_keys("metrics", THOUSANDS), "misreporting"),
    "a metric key of 1 MB": (with_keys("metrics", MEGABYTE), "misreporting"),
    "loss is missing": (without("metrics", "loss"), "misreporting"),
    "loss 1e300": (with_metric("loss", 1e300), "counted"),
    "loss NaN": (with_metric("loss", float("nan")), "misreporting"),
    "loss of 10^400": (with_metric("loss", 10**400), "misreporting"),
    "no MetricRecord": (without("metrics"), "records"),
    "2 MetricRecords": (with_record("more", MetricRecord({"loss": 9.0})), "records"),
    "nothing": (lambda content: RecordDict(), "records"),
    "other record names": (renamed, "counted"),
    "error reply": (raising, "missing"),
    "no reply": (silent, "missing"),
}
ARRAYS = {
    "missing array key": (without("arrays", "w"), "keys"),
    "extra array key": (with_keys("arrays", ["x"]), "keys"),
    "5 000 array keys": (with_keys("arrays", THOUSANDS), "keys"),
    "an array key of 1 MB": (with_keys("arrays", MEGABYTE), "keys"),
    "no ArrayRecord": (without("arrays"), "records"),
    "empty ArrayRecord": (emptied, "keys"),
    "2 ArrayRecords": (with_record("more", record(SHARED)), "records"),
    "wrong shape": (with_array(lambda w: w[:2]), "shape"),
    "transposed": (with_array(np.transpose), "shape"),
    "size 0": (with_array(lambda w: w[:0]), "shape"),
    "header of 1e12 numbers": (with_data(header((10**6, 10**6))), "shape"),
    "header of leading zeros": (with_data(header("(03, 20)") + bytes(240)), "header"),
    "header of too few bytes": (with_data(header((3, 20)) + b"abc"), "length"),
    "all NaN": (with_array(lambda w: w * np.nan), "not-finite"),
    "one NaN": (with_array(one_nan), "not-finite"),
    "Inf": (with_array(lambda w: w + np.inf), "not-finite"),
    "-Inf": (with_array(lambda w: w - np.inf), "not-finite"),
    "1e30": (with_array(lambda w: w * np.float32(1e30)), "too-large"),
    "1e6": (with_array(lambda w: w * np.float32(1e6)), "trimmed"),
    "num-examples 1e30, bad weights": (taken_over(1e30), "trimmed"),
    "num-examples -109, bad weights": (taken_over(-109), "trimmed"),
    "pickled": (with_data(pickle.dumps(SHARED["w"])), "header"),
    "garbage": (with_data(b"\x00\xffgarbage"), "header"),
    "no bytes": (with_data(b""), "header"),
    "unknown stype": (with_data(b"", "torch"), "stype"),
    "complex64": (with_array(lambda w: w.astype(np.complex64)), "header"),
    "objects": (with_data(saved(np.full((3, 20), None))), "header"),
    "structures": (with_data(saved(np.zeros((3, 20), "f4,f4"))), "header"),
    "big-endian": (with_array(lambda w: w.astype(">f4")), "counted"),
    "Fortran order": (with_array(np.asfortranarray), "counted"),
    "float64": (with_array(np.float64), "counted"),
    "negative zeros": (with_array(lambda w: np.full_like(w, -0.0)), "trimmed"),
    "denormals": (with_array(lambda w: np.full_like(w, 1e-45)), "trimmed"),
    "strings": (with_array(lambda w: w.astype(str)), "header"),
    "poisoned buffer": (poisoned_buffer, "counted"),
}


def grid_with(fault, faulty):
    """Twelve clients, of which one spoils what an honest one would reply."""
    app = ClientApp()

    def handle(message, context):
        client = context.node_config["partition-id"]
        content = replied(client)
        if message.metadata.message_type == "evaluate":
            del content["arrays"]
        if context.node_id in faulty:
            changed = fault(content)
            if fault is silent:
                return None
            content = changed if isinstance(changed, RecordDict) else content
        return Message(content, reply_to=message)

    app.train()(handle)
    app.evaluate()(handle)
    return InProcessGrid(app, N)


def ask(strategy, fault, place, phase):
    """Run one phase of a round with the fault at a place in the order of replies."""
    faulty = set()
    grid = grid_with(fault, faulty)
    configure = getattr(strategy, f"configure_{phase}")
    messages = configure(1, record(SHARED), ConfigRecord(), grid)
    node = messages[place].metadata.dst_node_id
    faulty.add(node)
    replies = grid.send_and_receive(messages)
    return node, getattr(strategy, f"aggregate_{phase}")(1, replies)


def everyone(strategy=FedAvg, **settings):
    return strategy(min_train_nodes=N, min_available_nodes=N, **settings)


def check_verdict(strategy, node, metrics, verdict):
    ledger = strategy.ledger[node]
    rejected = verdict not in ("counted", "misreporting", "trimmed", "missing")
    assert ledger.rejected == ({verdict: 1} if rejected else {})
    assert metrics["nodes-rejected"] == ([node] if rejected else [])
    assert metrics["nodes-misreporting"] == (
        [node] if verdict == "misreporting" else []
    )
    assert metrics["replies-missing"] == ledger.missing == (verdict == "missing")
    assert metrics["replies-accepted"] == N - rejected - (verdict == "missing")


def check_metrics(metrics):
    """The loss stays among those of honest clients, and no key came in."""
    own = {key for key in metrics if not key.startswith(("replies-", "nodes-"))}
    assert own == {"loss"}
    assert 1.0 <= metrics["loss"] <= 1.0 + 0.01 * (N - 1)


@pytest.mark.parametrize("place", [0, N // 2, N - 1])
@pytest.mark.parametrize("name", [*METRICS, *ARRAYS])
def test_training_bears_a_fault(name, place):
    """The model stays among the honest clients' in every coordinate."""
    fault, verdict = {**METRICS, **ARRAYS}[name]
    strategy = RobustStrategy(everyone(), num_malicious_nodes=F)
    node, (arrays, metrics) = ask(strategy, fault, place, "train")
    assert list(arrays) == list(SHARED)
    for key, sent in SHARED.items():
        honest = np.stack([trained(client)[key] for client in range(N)])
        found = arrays[key].numpy()
        assert found.dtype == np.asarray(sent).dtype and found.shape == np.shape(sent)
        assert (honest.min(0) - 1e-6 <= found).all()
        assert (found <= honest.max(0) + 1e-6).all()
    check_verdict(strategy, node, metrics, verdict)
    check_metrics(metrics)
    if verdict == "trimmed":
        assert node in metrics["nodes-trimmed"]


@pytest.mark.parametrize("place", [0, N // 2, N - 1])
@pytest.mark.parametrize("name", METRICS)
def test_evaluation_bears_a_fault(name, place):
    fault, verdict = METRICS[name]
    strategy = RobustStrategy(everyone(min_evaluate_nodes=N), num_malicious_nodes=F)
    node, metrics = ask(strategy, fault, place, "evaluate")
    check_verdict(strategy, node, metrics, verdict)
    check_metrics(metrics)


@pytest.mark.parametrize(
    "inside", [FedAvg, FedAdam, FedYogi, FedAdagrad, FedAvgM, FedProx]
)
def test_server_optimisers_go_on_from_the_robust_result(inside):
    """With the mean, and a faulty client that is rejected, all is as without it.

    Oracle: Flower's own strategy, whose clients are the eleven good ones.
    """

    def app(clients):
        app = ClientApp()

        @app.train()
        def train(message, context):
            client = clients[context.node_config["partition-id"]]
            sent = message.content["arrays"]["w"].numpy()
            w = 0.9 * sent + np.float32(0.01 * client)
            if client == 7:
                w = w * np.nan
            content = {
                "arrays": record({"w": w}),
                "metrics": replied(client)["metrics"],
            }
            return Message(RecordDict(content), reply_to=message)

        return app

    settings = {"server_momentum": 0.9} if inside is FedAvgM else {}
    start = record({"w": SHARED["w"]})
    robust = RobustStrategy(
        everyone(inside, fraction_evaluate=0.0, **settings),
        "mean",
        num_malicious_nodes=0,
    )
    found = robust.start(InProcessGrid(app(range(N)), N), start, num_rounds=4)
    good = [client for client in range(N) if client != 7]
    plain = inside(fraction_evaluate=0.0, **settings)
    told = plain.start(InProcessGrid(app(good), N - 1), start, num_rounds=4)
    assert found.arrays["w"].dtype == "float32"
    np.testing.assert_allclose(
        found.arrays["w"].numpy(), told.arrays["w"].numpy(), rtol=2e-5, atol=1e-6
    )


@pytest.mark.parametrize("inside", [FedAvg, FedAdam, FedYogi, FedAdagrad, FedAvgM])
def test_all_faults_of_a_run_at_once(inside):
    """Two of twelve do something else in each round: no exception, no lost round."""
    faults = [fault for fault, _ in {**METRICS, **ARRAYS}.values()]
    rounds = len(faults) // 2
    faulty, state = set(), {"next": 0}

    def next_fault(content):
        fault = faults[state["next"] % len(faults)]
        state["next"] += 1
        return fault(content)

    settings = {"server_momentum": 0.9} if inside is FedAvgM else {}
    strategy = RobustStrategy(
        everyone(inside, min_evaluate_nodes=N, **settings), num_malicious_nodes=F
    )
    grid = grid_with(next_fault, faulty)
    faulty |= set(grid.get_node_ids()[:F])
    result = strategy.start(grid, record(SHARED), num_rounds=rounds)
    for metrics in result.train_metrics_clientapp.values():
        check_metrics(metrics)
    assert len(result.train_metrics_clientapp) == rounds
    assert len(result.evaluate_metrics_clientapp) == rounds
    for key, sent in SHARED.items():
        found = result.arrays[key].numpy()
        assert np.isfinite(found).all() and found.dtype == np.asarray(sent).dtype
    assert (result.arrays["bn.running_var"].numpy() >= 1).all()
    assert result.arrays["bn.num_batches_tracked"].numpy() == 14


def test_the_page_has_what_comes_of_each_fault():
    """Of FedAvg as well, where the release of Flower is that of the page."""
    from tests.helpers.fault_table import table
    from tests.helpers.pages import DOCS, Page

    text = Page(DOCS / "reliability.md").text
    flower = re.search(r"flwr ([\d.]+\d)", text)[1]
    known = version("flwr").startswith(flower)
    lines = {
        tuple(cell.strip() for cell in line.split("|")[1:-1])
        for line in text.splitlines()
    }
    for name, before, after in table():
        found = [line for line in lines if line[:1] == (name,)]
        assert found == [(name, before if known else found[0][1], after)]
