"""Measure whether a model is wrong, or only its running means and variances.

These travel with the weights, so attacks reach them as well. For each run folder, print
the accuracy of the model as it is, and with the statistics of an honest client's data.
Run it in the folder of this repository:

    python -m examples.papers.running_statistics FOLDER …
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from clients.config import RunConfig
from clients.models import build_model
from clients.task import evaluate, load_held_out, load_train
from flwr_ctma.experiments.app import FlowerApp

APP = FlowerApp(Path(__file__).parents[2])


def accuracies(folder: Path) -> tuple[float, float]:
    """Return the accuracy of a run's model before and after new statistics."""
    told = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = RunConfig.of(APP.run_config(told))
    held_out = load_held_out(config)
    model = build_model(held_out, config)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    _, before = evaluate(model, held_out)
    honest = config.num_nodes - 1
    measure_statistics(model, load_train(config, honest, config.num_nodes).images)
    _, after = evaluate(model, held_out)
    return before, after


@torch.no_grad()
def measure_statistics(model: nn.Module, images: Tensor) -> None:
    """Replace the running statistics by averages over images."""
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None  # averages
    model.train()
    for some in images.split(250):
        model(some)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print("{:.1%} {:.1%}".format(*accuracies(Path(name))), name)
