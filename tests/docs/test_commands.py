"""Every command in the pages is one that the programs understand."""

import contextlib
import io
import re
import sys
import tomllib
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

import click
import pytest
import typer
from flwr.cli.app import app as flwr

from clients.config import RunConfig
from flwr_ctma import parse_aggregator
from flwr_ctma.attacks import parse_attack
from flwr_ctma.cli import app as flwr_ctma
from flwr_ctma.experiments.app import FlowerApp, parse_app
from flwr_ctma.experiments.benchmark import Suite
from flwr_ctma.experiments.sweep import Sweep
from tests.helpers.pages import DOCS, PAGES, ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SOURCES = (ROOT / "constraints.txt").exists()  # not where the wheel is tested
FOREIGN = {"cd", "export", "."}  # the shell's
PLACEHOLDER = Path("path/to/your/app")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_understood(page, monkeypatch):
    folder = ROOT if DOCS in page.path.parents else page.path.parent
    for words in page.commands():
        if words[0] == "cd":
            folder = folder / words[1]
        monkeypatch.chdir(folder)
        check(words)
    monkeypatch.chdir(ROOT)
    for words in page.mentions():
        check(words, whole=False)


@pytest.mark.parametrize(
    "words",
    [
        ["flwr-ctma", "compare", "--agregator", "cwmed"],
        ["flwr-ctma", "compare", "--aggregator", "cwmid"],
        ["flwr-ctma", "compare", "-c", "num-nods=3"],
        ["flwr-ctma", "play"],
        ["flwr", "run", ".", "--run-config", "num-nods=3"],
        ["flower-superlink", "--unsafe"],
        ["pytest", "-m", "slow"],
        ["python", "tests/benchmark/compare.py", "--solo"],
        ["python", "-m", "examples.papers.none"],
        ["pip", "install", ".[application]"],
        ["make"],
    ],
    ids=" ".join,
)
def test_what_is_not_understood_is_found(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises((AssertionError, OSError, ValueError, click.UsageError)):
        check(words)


def check(words, whole=True):
    """Raise if a program would not understand its words; some may be left out."""
    program, *words = words
    program = program.removeprefix(".venv/bin/")
    if program == "flwr-ctma":
        known(flwr_ctma, words, whole)
    elif program == "flwr":
        known(flwr, words, whole)
    elif program == "pip":
        installed(words)
    elif program in ("python", "python3"):
        run_by_python(words, whole)
    elif program in ("pytest", "flower-superlink", "flower-supernode"):
        assert options(words) <= set(re.findall(r"--?[a-z][\w-]*", said(program)))
        if program == "pytest":
            collected(words)
    else:
        assert program in FOREIGN, f"`{program}`: say here how it is checked"


def known(app, words, whole):
    """Let a command line parse its words, then the library the values."""
    command, context = typer.main.get_command(app), None
    while isinstance(command, click.Group) and words and words != ["--help"]:
        context = click.Context(command, context)
        _, command, words = command.resolve_command(context, words)
    if not whole:
        takes = {name for one in command.params for name in one.opts}
        assert options(words) <= takes | {"--help"}
        return
    given = command.make_context(command.name, words).params
    for rule in given.get("aggregator") or ():
        assert rule == "fedavg" or parse_aggregator(rule)
    for attack in given.get("attack") or ():
        assert parse_attack(attack)
    overrides = given.get("run_config") or given.get("run_config_overrides") or ()
    folder = Path(given.get("folder") or given.get("app") or ".")
    if command.name == "sweep":
        assert Sweep.read(Path(given["file"]), parse_app(str(folder)), *overrides).runs
    elif command.name == "benchmark":
        assert Suite.read(given["suite"], parse_app(str(folder)), *overrides).rules
    elif overrides and folder != PLACEHOLDER:
        config = FlowerApp(folder).run_config(*overrides)
        if folder.resolve() == ROOT:
            RunConfig.of(config)


def installed(words):
    """Every extra and, with the sources, every file exists."""
    extras = PROJECT["project"]["optional-dependencies"]
    assert words[0] == "install"
    for word in words:
        found = re.fullmatch(r"\.\[(.*)\]", word)
        assert set(found[1].split(",") if found else ()) <= set(extras)
        assert not word.endswith(".txt") or not SOURCES or Path(word).exists()


def run_by_python(words, whole):
    """A module that is known, or a script that has the options."""
    if words[0] == "-m":
        if words[1] == "flwr_ctma":
            known(flwr_ctma, words[2:], whole)
        if words[1] in ("flwr_ctma", "venv"):
            return
        words = [f"{words[1].replace('.', '/')}.py", *words[2:]]
    script = Path(words[0]).read_text(encoding="utf-8")
    assert options(words[1:]) <= set(re.findall(r'"(--?[a-z-]+)"', script))


def collected(words):
    """Every file and every marker exists."""
    settings = PROJECT["tool"]["pytest"]["ini_options"]
    markers = [marker.partition(":")[0] for marker in settings["markers"]]
    for before, word in zip(["", *words], words, strict=False):
        if before == "-m":
            assert set(re.findall(r"\w+", word)) <= {*markers, "not", "and", "or"}
        elif not word.startswith("-"):
            assert Path(word).exists()


def options(words):
    return {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}


@cache
def said(program):
    """Give the help of a program of this environment."""
    (entry,) = entry_points(group="console_scripts", name=program)
    out, before = io.StringIO(), sys.argv
    sys.argv = [program, "--help"]
    try:
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            entry.load()()
    finally:
        sys.argv = before
    return out.getvalue()
