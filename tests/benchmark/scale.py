"""Measure rounds that are too large for the memory of one process, for docs/scale.md.

python -m tests.benchmark.scale disk 80 1e8 /tmp
python -m tests.benchmark.scale ray 17 1e7
python -m tests.benchmark.scale stages 17 1e6
python -m tests.benchmark.scale last 17 1e6
"""

import logging
import statistics
import sys
import threading
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from flwr_ctma import parse_aggregator
from flwr_ctma.aggregators import Budget
from flwr_ctma.engine.updates import Layer, Updates
from flwr_ctma.messages.schema import ReplySchema
from flwr_ctma.simulation.clock import ArrivalGrid, FixedDurations
from flwr_ctma.strategy import OnDiskGrid, RobustStrategy

TENSORS = 10
RULES = ["mean", "ctma(gm)", "nnm(ctma(gm))", "cwmed", "ctma(cwmed)", "cwtm"]


def disk(n: int, d: int, folder: str) -> None:
    """Time a round of RobustStrategy with its replies on disk."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: object) -> Message:
        rng = np.random.default_rng(message.metadata.dst_node_id)
        arrays = ArrayRecord()
        for key in message.content["arrays"]:
            arrays[key] = Array(rng.random(d // TENSORS, np.float32))
        content = {"arrays": arrays, "metrics": MetricRecord({"loss": 1.0})}
        return Message(RecordDict(content), reply_to=message)

    zeros = np.zeros(d // TENSORS, np.float32)
    initial = ArrayRecord({str(i): Array(zeros) for i in range(TENSORS)})
    inner = FedAvg(fraction_evaluate=0.0, min_available_nodes=n)
    strategy = RobustStrategy(inner, num_malicious_nodes=n // 10)
    grid = OnDiskGrid(ArrivalGrid(app, n, FixedDurations((1.0,) * n)), n // 10, folder)
    prepared = strategy.configure_train(1, initial, ConfigRecord(), grid)
    peaks = Peaks()
    replies, received = clock(lambda: grid.send_and_receive(prepared))
    before = peaks.stop()
    peaks = Peaks()
    (_, metrics), aggregated = clock(lambda: strategy.aggregate_train(1, replies))
    assert metrics["replies-accepted"] == n
    print(f"n = {n}, d = {d:.3g}: rows of {4 * n * d / 1e9:.1f} GB in float32")
    print(f"made, received and written in {received:.0f} s, peak {before:.2f} GB")
    print(f"replies to model in {aggregated:.0f} s, peak {peaks.stop():.2f} GB")


class Peaks:
    """Watch the peak of this process's own memory, without mapped files."""

    def __init__(self) -> None:
        self._most, self._done = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self._most = max(self._most, own_memory())

    def stop(self) -> float:
        """Return the peak in GB."""
        self._done.set()
        self._thread.join()
        return self._most / 1e9


def own_memory() -> int:
    """Return the resident anonymous memory in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("RssAnon"))
    return 1024 * int(line.split()[1])


def ray(n: int, d: int) -> None:
    """Time rules on Ray workers, relative to the same rules in this process."""
    import ray

    from flwr_ctma.engine.ray import RayBackend

    ray.init(log_to_driver=False, include_dashboard=False)
    matrix = np.random.default_rng(0).standard_normal((n, d), dtype=np.float32)
    layers = [Layer(list(matrix), np.zeros(d, np.float32))]
    backend = RayBackend()
    backend.place(Updates.of([Layer(matrix[:, :10])]).stack).largest()
    times = []
    for _ in range(3):

        def placed() -> Updates:
            stack = backend.place(Updates.of(layers).stack)
            stack._ask("combine", np.zeros(n))
            return Updates(stack)

        rows, seconds = clock(placed)
        times.append(seconds)
        del rows
    print(f"n = {n}, d = {d:.3g}, {len(backend._pool.workers)} workers of one core")
    gb = matrix.nbytes / 1e9
    print(f"{gb:.2f} GB to the workers: {statistics.median(times):.3f} s")
    print("rule, ms in this process, ms on workers, ratio")
    rows = placed()
    for spelled in RULES:
        rule, budget = parse_aggregator(spelled), Budget(n, n // 4)

        def solve(updates: Updates, rule=rule, budget=budget) -> None:
            vars(updates.stack).pop("moments", None)
            rule.solve(updates, budget).vector(updates.stack)

        local = Updates.of(layers)
        here, there = [], []
        for _ in range(5):
            here.append(clock(lambda: solve(local))[1])  # noqa: B023
            there.append(clock(lambda: solve(rows))[1])
        here, there = (1e3 * statistics.median(times) for times in (here, there))
        print(f"{spelled}, {here:.0f}, {there:.0f}, {there / here:.2f}", flush=True)
    ray.shutdown()


def stages(n: int, d: int) -> None:
    """Time each stage between the replies and the model."""
    rows = np.random.default_rng(0).standard_normal((n, d), dtype=np.float32)
    arrays = [ArrayRecord({"w": Array(row)}) for row in rows]
    model = ReplySchema(ArrayRecord({"w": Array(np.zeros(d, np.float32))}))
    contents = [
        RecordDict({"arrays": record, "metrics": MetricRecord()}) for record in arrays
    ]
    shares, rule, budget = np.full(n, 1 / n), parse_aggregator("ctma(gm)"), Budget(n, 1)
    found: dict[str, list[float]] = {}
    for _ in range(5):
        replies, inspect = clock(lambda: [model.read(c) for c in contents])
        stack = model.updates(replies, model.measured).stack
        vector, combine = clock(lambda: stack.combine(shares))  # noqa: B023
        gram = clock(lambda: stack.moments)[1]  # noqa: B023
        seconds = {
            "inspect": inspect,
            "gram": gram,
            "rule": clock(lambda: rule.solve(Updates(stack), budget))[1],  # noqa: B023
            "combine": combine,
            "write": clock(lambda: model.write({0: vector[0]}))[1],  # noqa: B023
        }
        for stage, value in seconds.items():
            found.setdefault(stage, []).append(value)
    for stage, values in found.items():
        print(
            f"{stage}, n = {n}, d = {d:.3g}: {1e3 * statistics.median(values):.1f} ms"
        )


def last(n: int, d: int) -> None:
    """Time FedAvg and rules from the last reply to the model, in turns.

    All replies but the last are received before, as they are while a round waits.
    """
    logging.getLogger("flwr").setLevel(logging.ERROR)
    rows = np.random.default_rng(0).standard_normal((n, d), dtype=np.float32)
    sent = ArrayRecord({"w": Array(np.zeros(d, np.float32))})
    payloads = [ArrayRecord({"w": Array(row)}) for row in rows]
    names = ["FedAvg", "mean", "ctma(gm)", "ctma(cwmed)"]
    strategies: dict[str, FedAvg | RobustStrategy] = {}
    for name in names:
        strategy = inner = FedAvg(min_train_nodes=n, min_available_nodes=n)
        if name != "FedAvg":
            strategy = RobustStrategy(inner, name, num_malicious_nodes=n // 5)
        strategies[name] = strategy
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in names}
    grid = ArrivalGrid(ClientApp(), n, FixedDurations((1.0,) * n))
    for k in range(12):
        for name in names[k % 4 :] + names[: k % 4]:
            strategy = strategies[name]
            asked = list(strategy.configure_train(1, sent, ConfigRecord(), grid))
            replies = []
            for i, (message, payload) in enumerate(zip(asked, payloads, strict=True)):
                message.metadata.__dict__["_message_id"] = str(i)
                content = {"metrics": MetricRecord({"num-examples": 1})}
                content["arrays"] = ArrayRecord(dict(payload.items()))
                replies.append(Message(RecordDict(content), reply_to=message))
            receive = getattr(strategy, "receive", list)
            begun = time.process_time()
            for reply in replies[:-1]:
                receive([reply])
            ready = time.process_time()
            seconds = clock(lambda: strategy.aggregate_train(1, replies))[1]  # noqa: B023
            now = time.process_time()
            found[name].append((seconds, now - ready, ready - begun))
    average = np.array(found["FedAvg"][1:])
    print(f"n = {n}, d = {d:.3g}: seconds after the last reply, and CPU before it")
    for name, values in found.items():
        wall, cpu, before = np.array(values[1:]).T
        times = [np.percentile(wall / average[:, 0], q) for q in (10, 50, 90)]
        print(
            f"{name:12} {1e3 * wall.min():6.1f} ms, "
            f"{1e3 * np.median(cpu):6.1f} of CPU; times FedAvg: {times[1]:.2f} "
            f"({times[0]:.2f}–{times[2]:.2f}), "
            f"of CPU {np.median(cpu / average[:, 1]):.2f}; "
            f"before: {1e3 * np.median(before):.1f}"
        )


def clock(call):
    """Return the result of a call and its seconds."""
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


if __name__ == "__main__":
    what, n, d, *more = sys.argv[1:]
    {"disk": disk, "last": last, "ray": ray, "stages": stages}[what](
        int(n), int(float(d)), *more
    )
