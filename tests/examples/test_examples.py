"""Each example learns under attack thanks to an import and a line, and not without."""

import importlib
import re
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Context, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod
from flwr.serverapp.strategy import (
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedProx,
    FedXgbBagging,
    FedXgbCyclic,
    FedYogi,
)
from threadpoolctl import threadpool_limits

from flwr_ctma.experiments.runtimes import Ray
from flwr_ctma.mods import ByzantineMod
from flwr_ctma.simulation.grid import InProcessGrid
from flwr_ctma.strategy import RobustStrategy

EXAMPLES = Path(__file__).parents[2] / "examples"
ATTACK = "scaling(factor=-10)"
MALICIOUS = 3


def of_pytorch(task):
    net = task.Net()
    net.load_state_dict(torch.load("final_model.pt"))
    return task.test(net, task.load_centralized_dataset(), "cpu")[1]


def of_lora(task):
    model = task.get_model(rank=4)
    model.load_state_dict(torch.load("adapters.pt"), strict=False)
    return task.accuracy(model, task.load_all()[1])


def of_sklearn(task):
    with np.load("logreg_model.npz") as saved:
        coef, intercept = saved["coef"], saved["intercept"]
    _, _, images, labels = task.load_digits_shuffled()
    return np.mean((images @ coef.T + intercept).argmax(axis=1) == labels)


def of_numpy(task):
    with np.load("final_model.npz") as saved:
        weights, biases = saved["weights"], saved["biases"]
    _, _, images, labels = task.load_all()
    return np.mean((images @ weights + biases).argmax(axis=1) == labels)


# Folder of the example, its package, and the accuracy of the model that it saves.
ACCURACIES = {
    "quickstart-pytorch": ("pytorchexample", of_pytorch),
    "quickstart-sklearn": ("sklearnexample", of_sklearn),
    "quickstart-numpy": ("numpyexample", of_numpy),
    "quickstart-lora": ("loraexample", of_lora),
    "quickstart-legacy": ("legacyexample", of_numpy),
}


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path, monkeypatch):
    """Apps write their models where they run; many small ones need no threads."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(threads)


class Example:
    """An example, as it is on disk."""

    def __init__(self, name, monkeypatch):
        self.folder = EXAMPLES / name
        self.package, self._accuracy = ACCURACIES[name]
        monkeypatch.syspath_prepend(self.folder)
        self.task = importlib.import_module(f"{self.package}.task")
        self.client_app = importlib.import_module(f"{self.package}.client_app").app
        self.server = (self.folder / self.package / "server_app.py").read_text()
        project = tomllib.loads((self.folder / "pyproject.toml").read_text())
        self.config = project["tool"]["flwr"]["app"]["config"]

    def accuracy(self):
        return self._accuracy(self.task)

    def attacked(self):
        return ByzantineMod(ATTACK, MALICIOUS).around(self.client_app)

    def run(self, server, client_app):
        """Run it in this process, with a server as given; return the accuracy."""
        grid = InProcessGrid(client_app, 10, self.config)
        module = {}
        exec(compile(server, "server_app.py", "exec"), module)
        module["app"](grid, Context(1, 1, {}, RecordDict(), dict(self.config)))
        return self.accuracy()


@pytest.mark.parametrize("name", ACCURACIES)
def test_two_lines_keep_an_existing_app_learning_under_attack(name, monkeypatch):
    example = Example(name, monkeypatch)
    lines = example.server.splitlines(keepends=True)
    ours = [line for line in lines if "RobustStrategy" in line]
    assert len(ours) == 2
    assert "flwr_ctma" not in "".join(set(lines) - set(ours))
    without = "".join(line for line in lines if line not in ours)
    assert example.run(without, example.attacked()) < 0.3
    assert example.run(example.server, example.attacked()) > 0.8


def test_every_example_is_tested():
    folders = {path.parent.name for path in EXAMPLES.glob("*/pyproject.toml")}
    assert folders == set(ACCURACIES)


def test_the_page_has_the_size_of_every_example_and_of_what_was_added():
    page = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| \[(\S+)\]\(\1\) \|.*\| (\d+) \| (\d+) \|$", page, re.M)
    assert table == [(name, *map(str, lines_of(name))) for name in ACCURACIES]


def lines_of(name):
    """Count the lines of an example, and those of them that name this package."""
    texts = [path.read_text("utf-8") for path in (EXAMPLES / name).glob("*/*.py")]
    lines = [line for text in texts for line in text.splitlines()]
    return len(lines), sum("RobustStrategy" in line for line in lines)


@pytest.mark.parametrize(
    "name",
    [
        "quickstart-numpy",
        *(
            pytest.param(name, marks=pytest.mark.long)
            for name in ACCURACIES
            if name != "quickstart-numpy"
        ),
    ],
)
def test_in_flowers_own_simulation(name, tmp_path, monkeypatch):
    """With the mod where users put it."""
    example = Example(name, monkeypatch)
    folder = shutil.copytree(example.folder, tmp_path / "app")
    client = folder / example.package / "client_app.py"
    app = "app = ClientApp("
    assert app in client.read_text()
    mods = f'mods=[ByzantineMod("{ATTACK}", nodes={MALICIOUS})]'
    client.write_text(
        "from flwr_ctma.mods import ByzantineMod\n"
        + client.read_text()
        .replace("app = ClientApp()", f"app = ClientApp({mods})")
        .replace("app = ClientApp(client_fn)", f"app = ClientApp(client_fn, {mods})")
    )
    with Ray(folder) as ray:
        for _ in ray.run({"num-server-rounds": 4}, 10, tmp_path / "log.txt"):
            pass
    assert example.accuracy() > 0.8


@pytest.mark.parametrize(
    "strategy",
    [
        FedAvg(min_available_nodes=10),
        FedAvgM(server_momentum=0.5),
        FedProx(proximal_mu=0.1),
        FedAdam(eta=0.1, tau=1e-3),
        FedAdagrad(eta=0.3, tau=1e-3),
        FedYogi(eta=0.1, tau=1e-3),
    ],
    ids=lambda strategy: type(strategy).__name__,
)
def test_server_optimisers_inside(strategy, monkeypatch):
    example = Example("quickstart-numpy", monkeypatch)
    grid = InProcessGrid(example.attacked(), 10, example.config)
    arrays = ArrayRecord(example.task.get_dummy_model())
    robust = RobustStrategy(strategy, num_malicious_nodes=MALICIOUS)
    result = robust.start(grid, arrays, 10)
    model = result.arrays.to_numpy_ndarrays()
    _, _, images, labels = example.task.load_all()
    assert example.task.evaluate(model, images, labels)[1] > 0.85


def test_clients_may_add_noise_for_their_own_privacy(monkeypatch):
    example = Example("quickstart-numpy", monkeypatch)
    privacy = LocalDpMod(clipping_norm=2.0, sensitivity=0.01, epsilon=10, delta=1e-5)
    app = ClientApp(mods=[ByzantineMod(ATTACK, MALICIOUS), privacy])
    app.train()(lambda message, context: example.client_app(message, context))
    example.config["fraction-evaluate"] = 0.0
    np.random.seed(0)  # noqa: NPY002, what Flower's mod draws its noise from
    assert example.run(example.server, app) > 0.8


@pytest.mark.parametrize("strategy", [FedXgbBagging, FedXgbCyclic])
def test_xgboost_is_refused_with_the_reason(strategy):
    with pytest.raises(ValueError, match="trees are joined, not averaged"):
        RobustStrategy(strategy(), num_malicious_nodes=3)
