"""What callbacks are told of a run, and where it can go."""

import io
import json
import random
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from flwr_ctma.mods import ByzantineMod
from flwr_ctma.simulation.grid import InProcessGrid
from flwr_ctma.strategy import Checkpointed, Observed, RobustStrategy
from flwr_ctma.tracking.callbacks import Progress, TensorBoard, numbers
from flwr_ctma.tracking.run_folder import RunFolder

app = ClientApp()
MALFORMED, SILENT, FAR = 0, 1, 2
NODE_OF = {MALFORMED: 2, SILENT: 3, FAR: 4}


@app.train()
def train(message, context):
    partition = context.node_config["partition-id"]
    if partition == SILENT:
        return None
    (x,) = message.content["arrays"].to_numpy_ndarrays()
    step = 100.0 if partition == FAR else 1.0 + partition / 100
    arrays = ArrayRecord([np.full(4, np.nan) if partition == MALFORMED else x + step])
    metrics = MetricRecord({"num-examples": 5, "train-loss": 0.5})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message, context):
    metrics = MetricRecord({"num-examples": 5, "accuracy": 0.8})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


def run(*callbacks, rounds=2, app=app, around=None, **start):
    inside = FedAvg(min_train_nodes=12, min_evaluate_nodes=12, min_available_nodes=12)
    robust = RobustStrategy(inside, "ctma(cwmed)", num_malicious_nodes=3)
    strategy = Observed(robust, *callbacks)
    if around:
        strategy = around(strategy)
    grid = InProcessGrid(app, 12)
    return strategy.start(grid, ArrayRecord([np.zeros(4)]), rounds, **start)


def measure(server_round, arrays):
    return MetricRecord({"accuracy": server_round / 10})


def test_a_line_says_what_happened_in_a_round():
    lines = []
    run(lines.append, evaluate_fn=measure)
    assert lines[0] == {"round": 0, "accuracy": 0.0}
    assert [line["round"] for line in lines] == [0, 1, 2]
    line = lines[1]
    assert line["accuracy"] == 0.1
    assert line["clients-accuracy"] == pytest.approx(0.8)
    assert line["train-loss"] == pytest.approx(0.5)
    assert sorted(line["asked"]) == list(range(2, 14))
    assert line["missing"] == [NODE_OF[SILENT]]
    assert line["rejected"] == [NODE_OF[MALFORMED]]
    assert NODE_OF[FAR] in line["trimmed"]
    assert line["seconds"] > 0
    size = len(ArrayRecord([np.zeros(4)])["0"].data)
    assert line["bytes-sent"] == 2 * 12 * size
    assert line["bytes-received"] == 11 * size


def test_nothing_is_changed():
    random.seed(0)  # Flower samples nodes with it
    seen = run(evaluate_fn=measure)
    random.seed(0)
    unseen = RobustStrategy(
        FedAvg(min_train_nodes=12, min_evaluate_nodes=12, min_available_nodes=12),
        "ctma(cwmed)",
        num_malicious_nodes=3,
    ).start(InProcessGrid(app, 12), ArrayRecord([np.zeros(4)]), 2, evaluate_fn=measure)
    assert seen.arrays == unseen.arrays
    assert seen.evaluate_metrics_serverapp == unseen.evaluate_metrics_serverapp


def test_without_an_evaluation_lines_come_all_the_same():
    lines = []
    run(lines.append)
    assert [line["round"] for line in lines] == [0, 1, 2]
    assert "accuracy" not in lines[1]


def test_a_callback_that_raises_costs_a_warning(caplog):
    lines = []
    run(lambda line: line["no such thing"], lines.append)
    assert len(lines) == 3
    assert "KeyError: 'no such thing'" in caplog.text


def test_any_client_may_send_anything():
    lines = []
    run(lines.append, app=ByzantineMod("malformed", nodes=3).around(app))
    assert len(lines) == 3


def test_metrics_of_an_app_hide_nothing_of_a_line():
    """Whatever the clients and the server call what they measure."""
    names = ("round", "asked", "missing", "rejected", "seconds", "bytes-sent")
    odd = MetricRecord(dict.fromkeys(names, 0.25))

    def answer(message, context, call_next):
        reply = call_next(message, context)
        if reply is not None and message.metadata.message_type == "train":
            reply.content["metrics"].update(odd)
        return reply

    around = ClientApp(mods=[answer])
    around.train()(lambda message, context: app(message, context))
    lines = []
    run(lines.append, app=around, evaluate_fn=lambda *_: odd)
    assert [line["round"] for line in lines] == [0, 1, 2]
    assert len(lines[1]["asked"]) == 12 and lines[1]["missing"] == [NODE_OF[SILENT]]
    assert lines[1]["rejected"] == [NODE_OF[MALFORMED]]
    assert lines[1]["bytes-sent"] > 1


def test_lines_make_a_run_folder(tmp_path):
    folder = RunFolder(tmp_path)
    folder.begin({"aggregator": "ctma(cwmed)"})
    run(folder.append, evaluate_fn=measure)
    lines = (tmp_path / "rounds.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == [0, 1, 2]


@pytest.mark.parametrize("whole", ["", '{"round": 0}\n{"round": 1}\n'])
@pytest.mark.parametrize("half", ["", "{", '{"round": 2, "accu'])
def test_half_a_line_does_not_spoil_the_next(tmp_path, whole, half):
    """A full disk, or a kill, leaves such; the run goes on in the same folder."""
    file = tmp_path / "rounds.jsonl"
    file.write_text(whole + half)
    RunFolder(tmp_path).append({"round": 2})
    assert file.read_text() == whole + '{"round": 2}\n'


@pytest.mark.parametrize(
    "spoiled",
    ['{"round": 1, "accu', "[1, 2]", "7", "", "\x00" * 9, "[" * 100_000],
)
def test_a_spoiled_line_costs_itself(tmp_path, spoiled):
    (tmp_path / "rounds.jsonl").write_text(
        f'{{"round": 0}}\n{spoiled}\n{{"round": 2}}\n'
    )
    assert RunFolder(tmp_path).rounds() == [{"round": 0}, {"round": 2}]


def test_bytes_that_are_no_text_cost_their_line(tmp_path):
    (tmp_path / "rounds.jsonl").write_bytes(b'\xff\xfe{\n{"round": 2}\n{"round"')
    assert RunFolder(tmp_path).rounds() == [{"round": 2}]


def test_lines_go_on_where_a_resumed_run_does(tmp_path):
    lines = []
    for rounds in (2, 4):
        run(lines.append, rounds=rounds, around=lambda s: Checkpointed(s, tmp_path))
    assert [line["round"] for line in lines] == [0, 1, 2, 3, 4]
    assert lines[4]["missing"] == [NODE_OF[SILENT]]


def test_progress_tells_what_matters():
    said = io.StringIO()
    run(Progress(2, said), evaluate_fn=measure)
    first, second, third = said.getvalue().splitlines()
    assert first == "Round 0 of 2 | accuracy 0"
    assert "Round 1 of 2 | accuracy 0.1 | rejected 1 | missing 1" in second
    assert third.endswith("0:00:00 left")


def test_tensorboard_shows_the_numbers(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(TensorBoard(tmp_path), evaluate_fn=measure)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    shown = [(e.step, e.value) for e in events.Scalars("accuracy")]
    assert shown == [(0, 0.0), (1, pytest.approx(0.1)), (2, pytest.approx(0.2))]
    assert [e.value for e in events.Scalars("rejected")] == [1.0, 1.0]


def test_mlflow_takes_the_numbers(tmp_path, monkeypatch):
    """As documented; with a store of files on this machine."""
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    store = (tmp_path / "mlruns").as_uri()
    mlflow.set_tracking_uri(store)
    with mlflow.start_run() as active:
        run(lambda line: mlflow.log_metrics(numbers(line), line["round"]))
    client = mlflow.MlflowClient(store)
    history = client.get_metric_history(active.info.run_id, "clients-accuracy")
    assert [(m.step, m.value) for m in history] == [
        (1, pytest.approx(0.8)),
        (2, pytest.approx(0.8)),
    ]


def test_weights_and_biases_takes_the_numbers(tmp_path, monkeypatch):
    """As documented; without a network."""
    wandb = pytest.importorskip("wandb")
    for variable in ("WANDB_DIR", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(variable, str(tmp_path))
    with wandb.init(mode="offline", dir=tmp_path) as active:
        run(lambda line: wandb.log(numbers(line), step=line["round"]))
        assert active.summary["clients-accuracy"] == pytest.approx(0.8)
        assert active.step == 2
    assert list(tmp_path.rglob("run-*.wandb"))


def test_the_page_has_these_lines():
    page = Path(__file__).parents[2] / "docs" / "watching.md"
    text = page.read_text(encoding="utf-8")
    assert 'lambda line: mlflow.log_metrics(numbers(line), line["round"])' in text
    assert 'lambda line: wandb.log(numbers(line), step=line["round"])' in text
