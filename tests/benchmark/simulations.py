"""Client-iterations a second of the app, on Ray and in one process.

python -m tests.benchmark.simulations ray in-process batched

An iteration is one local step: with double momentum two gradients. Rounds of 17 honest
clients without evaluation; counted is the lower quartile of their times, as other work
on the machine only ever slows them down.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, disable_progress_bars

from flwr_ctma.experiments.app import FlowerApp
from flwr_ctma.experiments.runtimes import Batched, Engine, InProcess, Ray
from flwr_ctma.tracking.run_folder import RunFolder

APP = Path(__file__).parents[2]
ENGINES: dict[str, type[Engine]] = {
    "ray": Ray,
    "in-process": InProcess,
    "batched": Batched,
}
NODES, ROUNDS, WARM_UP = 17, 20, 3
SETTINGS = [
    ("digits", "small", 32, 1),
    ("digits", "small", 32, 5),
    ("digits", "small", 32, 10),
    ("digits", "small", 4, 1),
    ("digits", "small", 4, 10),
    ("28x28", "paper", 4, 1),
    ("28x28", "paper", 4, 10),
]


def noise(folder: Path) -> None:
    """Write a dataset of MNIST's shape."""
    disable_progress_bars()
    rng = np.random.default_rng(0)
    features = Features({"image": Image(), "label": ClassLabel(num_classes=10)})
    for split, size in (("train", 1700), ("test", 100)):
        pixels = rng.integers(0, 256, (size, 28, 28), dtype=np.uint8)
        columns = {"image": list(pixels), "label": rng.integers(0, 10, size)}
        data = Dataset.from_dict(columns, features=features)
        data.to_parquet(folder / f"{split}.parquet")


def seconds(engine: Engine, config: dict[str, object], folder: Path) -> list[float]:
    """Give the seconds of each round of one run."""
    folder.mkdir()
    config = FlowerApp(APP).run_config(config, {"output": str(folder)})
    for _ in engine.run(config, NODES, folder / "log.txt"):
        pass
    return [float(line["seconds"]) for line in RunFolder(folder).rounds()[WARM_UP:]]


def main(*names: str) -> None:
    """Print a line for each setting."""
    print("data network batch steps:", *names)
    with TemporaryDirectory() as name:
        root = Path(name)
        (root / "28x28").mkdir()
        noise(root / "28x28")
        for data, model, batch, steps in SETTINGS:
            config = {
                "dataset": data if data == "digits" else str(root / data),
                "model": model,
                "batch-size": batch,
                "local-steps": steps,
                "num-nodes": NODES,
                "num-malicious-nodes": 0,
                "attack": "none",
                "num-server-rounds": ROUNDS,
                "evaluate-every": ROUNDS,
            }
            rates = []
            for each in names:
                with ENGINES[each](APP) as engine:
                    folder = root / f"{data} {model} {batch} {steps} {each}"
                    quick = np.quantile(seconds(engine, config, folder), 0.25)
                    rates.append(f"{NODES * steps / quick:.0f}")
            print(data, model, batch, f"{steps}:", *rates, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
