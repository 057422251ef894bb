"""An attack is added to an app that knows nothing of it by one line."""

import importlib
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Context, RecordDict
from threadpoolctl import threadpool_limits

from flwr_ctma.simulation.grid import InProcessGrid

ROOT = Path(__file__).parents[2]
IMPORT = "from flwr_ctma.mods import ByzantineMod\n"
AROUND = 'app = ByzantineMod("signflip", nodes=3).around(app)\n'
WITHIN = 'mods=[ByzantineMod("signflip", nodes=3)]'
APPS = {
    "quickstart-legacy": "legacyexample",  # a NumPyClient
    "quickstart-sklearn": "sklearnexample",
    "quickstart-pytorch": "pytorchexample",
}


class Recording(InProcessGrid):
    """Keeps what each partition adds to the model in the first round of training."""

    def __init__(self, *args):
        super().__init__(*args)
        self.updates = {}

    def send_and_receive(self, messages, *, timeout=None):
        messages = list(messages)
        replies = super().send_and_receive(messages, timeout=timeout)
        sent = {m.metadata.message_id: m for m in messages}
        for reply in replies:
            asked = sent[reply.metadata.reply_to_message_id]
            if asked.metadata.message_type == "train":
                node = asked.metadata.dst_node_id
                update = vector(reply) - vector(asked)
                self.updates.setdefault(self.get_node_ids().index(node), update)
        return replies


def vector(message):
    (arrays,) = message.content.array_records.values()
    return np.concatenate([a.ravel() for a in arrays.to_numpy_ndarrays()])


def updates(folder, package, edit=lambda source: source):
    """Run a round of the app in a folder, its client's source edited before."""
    config = tomllib.loads((folder / "pyproject.toml").read_text())
    config = config["tool"]["flwr"]["app"]["config"] | {"num-server-rounds": 1}
    module = {"__name__": "edited"}
    source = edit((folder / package / "client_app.py").read_text())
    exec(compile(source, "client_app.py", "exec"), module)
    grid = Recording(module["app"], 10, config)
    server = importlib.import_module(f"{package}.server_app").app
    server(grid, Context(1, 1, {}, RecordDict(), dict(config)))
    return grid.updates


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # apps write their models where they run
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", APPS)
def test_one_line_makes_three_clients_of_any_app_malicious(name, monkeypatch):
    folder = ROOT / "examples" / name
    monkeypatch.syspath_prepend(folder)
    usual = np.mean(list(updates(folder, APPS[name]).values()), axis=0)

    def around(source):
        return IMPORT + source + AROUND

    def within(source):
        (line,) = [line for line in source.splitlines() if line.startswith("app = ")]
        arguments = line.removeprefix("app = ClientApp(").removesuffix(")")
        arguments = ", ".join(filter(None, [arguments, WITHIN]))
        return IMPORT + source.replace(line, f"app = ClientApp({arguments})")

    for edit in (around, within):
        attacked = updates(folder, APPS[name], edit)
        signs = {i: np.sign(update @ usual) for i, update in attacked.items()}
        assert signs == {i: -1 if i < 3 else 1 for i in range(10)}


def test_attacks_page_has_the_tested_lines():
    page = (ROOT / "docs" / "attacks.md").read_text(encoding="utf-8")
    for line in (IMPORT, AROUND, WITHIN):
        assert line.strip() in page
