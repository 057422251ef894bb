"""What the pages show runs, and what they point at is there."""

import doctest
import importlib
import json
import re
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from types import FunctionType
from unittest.mock import patch

import pytest
import torch
import yaml
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from threadpoolctl import threadpool_limits

from flwr_ctma.aggregators import RULES
from flwr_ctma.attacks import ATTACKS
from flwr_ctma.mods import ByzantineMod
from flwr_ctma.simulation.grid import InProcessGrid
from tests.helpers.pages import DOCS, PAGES, ROOT, Page

ELSEWHERE = {  # the tests that run blocks of a page in another way
    ("CONTRIBUTING.md", "python"): "docs/test_contributing.py",
    ("docs/deployment.md", "bash"): "deployment/test_secured.py",
}
READERS = {"toml": tomllib.loads, "json": json.loads, "yaml": yaml.safe_load}
SOURCES = (ROOT / "constraints.txt").exists()  # not where the wheel is tested
PUBLIC = [
    *("strategy", "aggregators", "attacks", "mods", "sampling", "simulation"),
    *("simulation.clock", "simulation.arrivals", "tracking.callbacks"),
    *("tracking.ledger", "legacy", "optim", "optim.schedules", "report"),
    *("strategy.asynchronous.weighting",),
]


@pytest.fixture
def given(tmp_path, monkeypatch):
    """What an app has already where a page tells what to add: Flower's names, its own.

    The app is one of the examples, with three of ten clients that attack.
    """
    monkeypatch.chdir(tmp_path)
    for name in ("numpy", "legacy"):
        monkeypatch.syspath_prepend(ROOT / "examples" / f"quickstart-{name}")
    task = importlib.import_module("numpyexample.task")
    app = importlib.import_module("numpyexample.client_app").app
    config = {"local-steps": 10, "learning-rate": 0.5}
    attacked = ByzantineMod("scaling(factor=-10)", 3).around(app)
    grid = InProcessGrid(attacked, 10, config)
    images, labels, _, _ = task.load_all()
    sent = RecordDict({"config": ConfigRecord({"server-round": 1})})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1), patch.dict(RULES), patch.dict(ATTACKS):
        yield {
            "__name__": "__main__",
            **{"FedAvg": FedAvg, "ClientApp": ClientApp, "ServerApp": ServerApp},
            **{"app": app, "client_app": app, "grid": grid, "strategy": FedAvg()},
            "initial_arrays": ArrayRecord(task.get_dummy_model()),
            "client_fn": importlib.import_module("legacyexample.client_app").client_fn,
            **{"images": images[:20].copy(), "labels": labels[:20].copy()},
            "message": Message(sent, grid.get_node_ids()[0], "train"),
        }
    torch.set_num_threads(threads)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_of_a_page_works(page, given):
    """Python in the order of the page; commands are in test_commands.py."""
    for block in page.blocks():
        if test := ELSEWHERE.get((page.name, block.language)):
            assert page.path.name in (Path(__file__).parents[1] / test).read_text()
        elif block.language == "python":
            run(block, given, page)
        elif block.language == "diff":
            run(replace(block, text=patched(block.text)), given, page)
        elif block.language in READERS:
            READERS[block.language](block.text)
        else:
            assert block.language in ("console", "text", ""), f"line {block.line}"


def patched(diff):
    """Return the new side of a diff."""
    kept = [line for line in diff.splitlines() if not line.startswith("-")]
    return "\n".join(line[1:] for line in kept)


def run(block, names, page):
    """Execute a block, or hold a session to the answers that it shows."""
    if block.text.startswith(">>>"):
        session = doctest.DocTestParser().get_doctest(
            block.text, names, page.name, page.name, block.line
        )
        failed, attempted = doctest.DocTestRunner(verbose=False).run(session)
        assert attempted > 0
        assert failed == 0
        return
    # Empty lines before it, so that a traceback has the line of the page.
    code = "\n" * (block.line + 1) + block.text
    exec(compile(code, str(page.path), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_figures_are_there(page):
    if not SOURCES and page.path.parent == ROOT:
        pytest.skip("outside of the source tree, where what it links to is not")
    for link in page.links():
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.path.parent / path).resolve() if path else page.path
        assert target.exists(), link
        if anchor:
            assert anchor in Page(target).anchors(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_tests_that_a_page_names_are_there(page):
    for path, name in re.findall(
        r"\b((?:tests|examples)/[\w/-]+\.(?:py|toml))(?:::(\w+))?", page.text
    ):
        text = (ROOT / path).read_text(encoding="utf-8")
        assert f"def {name}(" in text if name else text, f"{path}::{name}"


def test_every_figure_is_shown_and_small():
    shown = {
        (page.path.parent / link).resolve() for page in PAGES for link in page.links()
    }
    for figure in (DOCS / "figures").iterdir():
        assert figure.resolve() in shown
        assert figure.stat().st_size < 150_000, figure


def test_navigation_has_every_page_once():
    trees = re.findall(
        r"```\{toctree\}\n(.*?)```", (DOCS / "index.md").read_text(), re.S
    )
    lines = [line for tree in trees for line in tree.split("\n") if line.strip()]
    entries = [line for line in lines if line[0] != ":"]
    pages = [re.sub(r".* <(.*)>", r"\1", entry) for entry in entries]
    assert len(set(pages)) == len(pages)
    paths = [*DOCS.rglob("*.md"), *DOCS.rglob("*.ipynb")]
    there = {p.relative_to(DOCS).with_suffix("").as_posix() for p in paths}
    assert set(pages) == there - {"index"}


def test_reference_has_every_public_name():
    """What a package exports has an entry, and every entry is something."""
    entries = [
        entry
        for page in PAGES
        if page.path.parent.name == "reference"
        for entry in re.findall(r"^\.\. auto\w+:: flwr_ctma\.(\S+)$", page.text, re.M)
    ]
    found = [exported(entry) for entry in entries]
    missing = [
        f"{package}.{name}"
        for package in PUBLIC
        for module in [importlib.import_module(f"flwr_ctma.{package}")]
        for name in module.__all__
        for value in [getattr(module, name)]
        if isinstance(value, type | FunctionType) and value not in found
    ]
    assert missing == []


def exported(entry):
    module, _, name = f"flwr_ctma.{entry}".rpartition(".")
    return getattr(importlib.import_module(module), name)


STORY = """
assert min(honest[-1], saved[-1], survived[-1]) > 0.8, (honest, saved, survived)
assert attacked[-1] < 0.3, attacked
assert len(axes.lines) == 3 and all(len(line.get_xdata()) == 21 for line in axes.lines)
assert {row["node"] for row in broken if row["rejected"]} == {2, 3, 4}, broken
assert min(worst["nnm(gm)"], worst["caf"]) > worst["fedavg"] + 0.3, worst
"""


def test_notebook_runs_from_top_to_bottom(tmp_path):
    """In a fresh interpreter; what its text says of the outcome is so."""
    book = json.loads((DOCS / "tutorial.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(c["source"]) for c in book["cells"] if c["cell_type"] == "code"]
    script = tmp_path / "tutorial.py"
    script.write_text("\n".join([*cells, STORY]), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    shown = [
        "".join(output.get("text", []))
        for cell in book["cells"]
        for output in cell.get("outputs", [])
    ]
    assert len(done.stdout.splitlines()) == len("".join(shown).splitlines())
