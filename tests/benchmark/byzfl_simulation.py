"""Iterations a second of `flwr-ctma simulate --batched` and of ByzFL, side by side.

    taskset -c 0 python -m tests.benchmark.byzfl_simulation MNIST_FOLDER

Both train the small network on MNIST: 13 honest clients with momentum, 4 colluders with
ALIE, NNM with a trimmed mean. The two run in turns in one process, and CPU seconds are
counted, so that other work on the machine matters little. Ratios are medians over the
turns. ByzFL reads decoded images from memory, faster than its transforms of files.
"""

import logging
import statistics
import sys
import time
from collections import OrderedDict
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

import torch
from torch.utils.data import DataLoader, TensorDataset

from clients.config import RunConfig
from clients.models import build_model
from clients.task import load_held_out, load_train
from flwr_ctma.experiments.app import FlowerApp
from flwr_ctma.simulation.batched import BatchedGrid

APP = FlowerApp(Path(__file__).parents[2])
HONEST, MALICIOUS, ROUNDS, TURNS = 13, 4, 30, 5
SETTINGS = {
    "model": "small",
    "local-steps": 1,
    "num-nodes": HONEST + MALICIOUS,
    "num-malicious-nodes": MALICIOUS,
    "attack": "alie",
    "aggregator": "nnm(cwtm)",
    "optimizer": "momentum",
    "steps-on": "server",
    "learning-rate": 0.1,
    "evaluate-every": 10 * ROUNDS,
    "device": "cpu",
}


def ours(config: dict[str, object]) -> float:
    """Return CPU seconds of a round of this app, start and end of a run taken off."""
    taken = []
    for rounds in (1, 1 + ROUNDS):
        with TemporaryDirectory() as folder:
            own = {"output": folder, "num-server-rounds": rounds}
            began = time.process_time()
            run_config = APP.run_config(config, own)
            APP.simulate(HONEST + MALICIOUS, run_config, BatchedGrid)
            taken.append(time.process_time() - began)
    return (taken[1] - taken[0]) / ROUNDS


class ByzFL:
    """ByzFL's own clients, attack and server, in its own training loop."""

    def __init__(self, config: RunConfig) -> None:
        import_byzfl()
        import byzfl
        from byzfl.fed_framework import models

        models.small = lambda: build_model(load_held_out(config), config)
        shared = {"model_name": "small", "device": "cpu", "learning_rate": 0.1}
        shared |= {"weight_decay": 0.0, "milestones": [], "learning_rate_decay": 1.0}
        shared |= {"optimizer_name": "SGD"}
        defence = {"name": "TrMean", "parameters": {"f": MALICIOUS}}
        mixing = [{"name": "NNM", "parameters": {"f": MALICIOUS}}]
        self.clients = []
        for partition in range(MALICIOUS, HONEST + MALICIOUS):
            examples = load_train(config, partition, HONEST + MALICIOUS)
            data = TensorDataset(examples.images, examples.labels)
            loader = DataLoader(data, batch_size=config.batch_size, shuffle=True)
            own = {"training_dataloader": loader, "loss_name": "CrossEntropyLoss"}
            own |= {"LabelFlipping": False, "nb_labels": 10, "momentum": 0.9}
            own |= {"store_per_client_metrics": False}
            self.clients.append(byzfl.Client({**shared, **own}))
        self.server = byzfl.Server(
            {
                **shared,
                "test_loader": loader,
                "aggregator_info": defence,
                "pre_agg_list": mixing,
            }
        )
        parameters = {"aggregator_info": defence, "pre_agg_list": mixing}
        parameters |= {"f": MALICIOUS}
        attack = {"name": "ALittleIsEnough", "f": MALICIOUS, "parameters": parameters}
        self.attack = byzfl.ByzantineClient(attack)

    def iterate(self) -> float:
        """Take a step of the loop in `byzfl.benchmark.train`; return CPU seconds."""
        began = time.process_time()
        for client in self.clients:
            client.compute_gradients()
        honest = [client.get_flat_gradients_with_momentum() for client in self.clients]
        self.server.update_model_with_gradients(
            honest + self.attack.apply_attack(honest)
        )
        model: OrderedDict[str, torch.Tensor] = self.server.get_dict_parameters()
        for client in self.clients:
            client.set_model_state(model)
        return time.process_time() - began


def import_byzfl() -> None:
    """Import ByzFL; its plots and data sets, which are not used here, may be absent."""
    import datasets  # noqa: F401, it must see no module that stands for an absent one

    for name in ("torchvision", "seaborn"):
        try:
            __import__(name)
        except (ImportError, RuntimeError):
            for module in [m for m in sys.modules if m.partition(".")[0] == name]:
                del sys.modules[module]
            absent = sys.modules[name] = ModuleType(name)
            absent.datasets = absent.transforms = _Absent()  # type: ignore[attr-defined]


class _Absent:
    def __getattr__(self, name: str) -> object:
        return lambda *args, **kwargs: None


def main(folder: str) -> None:
    """Print a line for each batch size."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    for size in (4, 32):
        config = {**SETTINGS, "dataset": folder, "batch-size": size}
        ours(config)  # decodes the images
        peer = ByzFL(RunConfig.of(APP.run_config(config)))
        ratios, times = [], []
        for _ in range(TURNS):
            mine = ours(config)
            theirs = statistics.mean(peer.iterate() for _ in range(ROUNDS))
            ratios.append(theirs / mine)
            times.append((mine, theirs))
        mine, theirs = (1e3 * statistics.median(t) for t in zip(*times, strict=True))
        print(
            f"batches of {size}: {mine:.1f} ms a round, ByzFL {theirs:.1f} ms, "
            f"{statistics.median(ratios):.2f} × ByzFL's rate "
            f"({min(ratios):.2f} to {max(ratios):.2f})",
            flush=True,
        )


if __name__ == "__main__":
    try:
        import_byzfl()
        import byzfl  # noqa: F401
    except ImportError:
        sys.exit("ByzFL is not installed: pip install byzfl==0.0.11")
    main(sys.argv[1])
