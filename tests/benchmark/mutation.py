"""Mutation test of the packages that carry promises.

    python -m tests.benchmark.mutation
    python -m tests.benchmark.mutation optim tracking/ledger.py --sample 20 --seed 1

A mutant is a module with one expression or statement changed. It is killed if a test
fails, or takes too long. The tests of the packages run once, and the lines that
each executes are noted. Then each mutant of a random sample meets the quick tests that
execute its line, the quickest first. A mutant that survives is printed: it is a line
that no quick test checks, or the mutant does the same as the original.

Tests run in processes forked from one that has imported Flower and torch, in a copy
of the source tree. `--lines FILE` keeps what the tests execute for the next call.
"""

import argparse
import ast
import contextlib
import functools
import importlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("strategy", "messages", "tracking", "optim")
SLOWEST = 3.0  # seconds of a test that counts as quick
PER_MUTANT = 15.0  # seconds of tests that a mutant meets at most

SWAPS = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.And: ast.Or,
    ast.Or: ast.And,
}


def mutations(tree):
    """Yield the line of each mutation of a module, and a function that applies it."""
    for name, held in ast.iter_fields(tree):
        if _is_left_alone(tree, name):
            continue
        for i, node in enumerate(held if isinstance(held, list) else [held]):
            if isinstance(node, ast.AST):
                place = (held, i) if isinstance(held, list) else (vars(tree), name)
                yield from _of_place(node, *place)
                yield from mutations(node)


def _is_left_alone(parent, name):
    """Return whether a field holds a type, a decorator, or words for people."""
    if name in ("annotation", "returns", "decorator_list", "bases", "type_params"):
        return True
    if isinstance(parent, ast.JoinedStr):
        return True
    if isinstance(parent, ast.Assign):
        return getattr(parent.targets[0], "id", "") == "__all__"
    return False


def _of_place(node, holder, key):
    """Yield the mutations of the node at one place."""

    def replaced(new):
        def apply():
            holder[key] = ast.fix_missing_locations(ast.copy_location(new, node))

        return node.lineno, apply

    def swapped(operators, i):
        return node.lineno, lambda: operators.__setitem__(
            i, SWAPS[type(operators[i])]()
        )

    match node:
        case ast.Compare():
            for i, operator in enumerate(node.ops):
                if type(operator) in SWAPS:
                    yield swapped(node.ops, i)
        case ast.BinOp() | ast.BoolOp() | ast.AugAssign() if type(node.op) in SWAPS:
            yield node.lineno, lambda: setattr(node, "op", SWAPS[type(node.op)]())
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            yield replaced(node.operand)
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return
        case ast.If() | ast.While() | ast.IfExp():
            negated = ast.UnaryOp(ast.Not(), node.test)
            yield node.lineno, lambda: setattr(node, "test", negated)
        case ast.Constant(value=bool()):
            yield replaced(ast.Constant(not node.value))
        case ast.Constant(value=int() | float()):
            yield replaced(ast.Constant(node.value + 1))
        case ast.Constant(value=str()) if node.value.isidentifier():
            yield replaced(ast.Constant(node.value + "X"))
        case ast.Return(value=ast.expr()) if not _is_none(node.value):
            yield node.lineno, lambda: setattr(node, "value", ast.Constant(None))
        case ast.Raise() | ast.Continue() | ast.Break():
            yield replaced(ast.Pass())
        case ast.Expr(value=ast.Call()):
            yield replaced(ast.Pass())
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield replaced(ast.Pass())


def _is_none(node):
    return isinstance(node, ast.Constant) and node.value is None


def mutated(source, k):
    """Return a module with its k-th mutation, and the lines before and after."""
    tree = ast.parse(source)
    before = ast.unparse(tree).splitlines()
    list(mutations(tree))[k][1]()
    after = ast.unparse(tree)
    lines = after.splitlines()
    first = next(
        (i for i, (a, b) in enumerate(zip(before, lines, strict=False)) if a != b), 0
    )
    return after, f"{before[first].strip()}  →  {lines[first].strip()}"


class Lines:
    """A pytest plugin that notes the lines that each test executes, and its seconds."""

    def __init__(self, tree, folders):
        self.tests = {}
        self._folders = tuple(f"{tree}/{folder}" for folder in folders)
        self._start = len(f"{tree}/")
        self._seen = set()

    def _trace(self, frame, event, arg):
        if not frame.f_code.co_filename.startswith(self._folders):
            return None
        seen, file = self._seen, frame.f_code.co_filename[self._start :]

        def line(frame, event, arg):
            seen.add((file, frame.f_lineno))
            return line

        return line(frame, event, arg)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        self._seen = set()
        threading.settrace(self._trace)
        sys.settrace(self._trace)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            threading.settrace(None)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item):
        def too_slow(*_):
            raise TimeoutError("no quick test")

        signal.signal(signal.SIGALRM, too_slow)
        signal.setitimer(signal.ITIMER_REAL, 2 * SLOWEST)
        try:
            return (yield)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def pytest_runtest_logreport(self, report):
        if report.when == "call" and report.passed:
            self.tests[report.nodeid] = [report.duration, self._seen]


class Only:
    """A pytest plugin that runs some tests only, in their order."""

    def __init__(self, names):
        self._order = {name: i for i, name in enumerate(names)}

    def pytest_collection_modifyitems(self, items):
        items[:] = [item for item in items if item.nodeid in self._order]
        items.sort(key=lambda item: self._order[item.nodeid])


def run_tests(tree, paths, *options, plugin):
    """Run pytest in this process, on a copy of the source tree; return its status."""
    os.chdir(tree)
    sys.path.insert(0, str(tree))
    os.environ["PYTHONPATH"] = str(tree)
    importlib.invalidate_caches()
    options = ["-q", "-p", "no:cacheprovider", *options]
    return int(pytest.main([*options, *paths], plugins=[plugin]))


def in_children(jobs, tasks):
    """Run tasks in forked processes, some at a time; yield each with its result.

    A task is a name, a time limit, and a function of a slot and a file for its result.
    The result is None for a task that ran out of time or died.
    """
    fork, waiting = multiprocessing.get_context("fork"), list(reversed(tasks))
    running = {}
    with tempfile.TemporaryDirectory() as folder:
        while waiting or running:
            for slot in {*range(jobs)} - {*running} if waiting else ():
                if waiting:
                    name, limit, work = waiting.pop()
                    file = Path(folder, f"{slot}.json")
                    file.unlink(missing_ok=True)
                    child = fork.Process(target=_child, args=(work, slot, file))
                    child.start()
                    running[slot] = name, time.monotonic() + limit, child, file
            time.sleep(0.02)
            for slot, (name, end, child, file) in list(running.items()):
                if child.is_alive() and time.monotonic() < end:
                    continue
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                child.join()
                yield name, json.loads(file.read_text()) if file.exists() else None
                del running[slot]


def _child(work, slot, file):
    os.setsid()
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    result = work(slot)
    draft = file.with_suffix(".draft")
    draft.write_text(json.dumps(result))
    draft.rename(file)
    os._exit(0)


def executed(trees, paths):
    """Return the quick tests in some files: their seconds and lines, by name."""

    def work(slot, path):
        plugin = Lines(trees[slot], [f"flwr_ctma/{room}" for room in ROOMS])
        run_tests(trees[slot], [path], plugin=plugin)
        return {name: [s, sorted(lines)] for name, (s, lines) in plugin.tests.items()}

    tasks = [(p, 600.0, functools.partial(work, path=p)) for p in paths]
    tests = {}
    for _, found in in_children(len(trees), tasks):
        tests |= found or {}
    return {name: held for name, held in tests.items() if held[0] < SLOWEST}


def files_of_tests(places):
    """Return the test files of each package, and the package for its examples."""
    rooms = dict.fromkeys(place.partition("/")[0] for place in places)
    folders = [ROOT / "tests" / room for room in rooms]
    files = [file for folder in folders for file in sorted(folder.glob("*.py"))]
    examples = [f"flwr_ctma/{room}" for room in rooms]
    return [str(file.relative_to(ROOT)) for file in files] + examples


def tests_of(tests, file, line):
    """Return the quickest tests that execute a line, and their seconds.

    A line that runs when its module is imported belongs to all tests of the module.
    """
    by_line = [
        (seconds, name)
        for name, (seconds, seen) in tests.items()
        if [file, line] in seen
    ]
    by_file = [
        (seconds, name)
        for name, (seconds, seen) in tests.items()
        if any(f == file for f, _ in seen)
    ]
    chosen, total = [], 0.0
    for seconds, name in sorted(by_line or by_file):
        if total + seconds > PER_MUTANT:
            break
        chosen.append(name)
        total += seconds
    return chosen, total


def meet(slot, trees, file, k, names):
    """Run tests on a mutant; return the status of pytest."""
    tree, code = trees[slot], "flwr_ctma"
    shutil.copytree(ROOT / code, tree / code, dirs_exist_ok=True)
    source = (ROOT / file).read_text(encoding="utf-8")
    (tree / file).write_text(mutated(source, k)[0], encoding="utf-8")
    # A compiled mutant would stand in for the next one of the same second and size.
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    files = dict.fromkeys(name.partition("::")[0] for name in names)
    return run_tests(tree, files, "-x", plugin=Only(names))


def try_mutants(trees, tests, mutants):
    """Run the tests of each mutant; print the survivors, and return the numbers."""
    tasks, counts = [], Counter()
    for file, k, line in mutants:
        names, seconds = tests_of(tests, file, line)
        work = functools.partial(meet, trees=trees, file=file, k=k, names=names)
        tasks.append(((file, k, line, len(names)), 30 + 5 * seconds, work))
    for (file, k, line, number), status in in_children(len(trees), tasks):
        killed = status not in (0, pytest.ExitCode.NO_TESTS_COLLECTED)
        counts[killed] += 1
        print(".", end="", file=sys.stderr, flush=True)
        if not killed:
            change = mutated((ROOT / file).read_text(encoding="utf-8"), k)[1]
            print(
                f"{file}:{line} [{k}] passes {number} tests\n    {change}", flush=True
            )
    return counts[True], counts.total()


def import_before_forking():
    """Import what this project imports, and forget the project itself."""
    import torch

    torch.set_num_threads(1)
    for name in ("strategy", "attacks", "mods", "optim", "simulation", "legacy"):
        importlib.import_module(f"flwr_ctma.{name}")
    for name in [name for name in sys.modules if name.startswith("flwr_ctma")]:
        del sys.modules[name]


def sample(paths, size, rng):
    """Return a random sample of the mutants of some modules: file, index, line."""
    found = []
    for path in paths:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        file = str(path.relative_to(ROOT))
        found += [(file, k, line) for k, (line, _) in enumerate(mutations(tree))]
    return rng.sample(found, min(size, len(found)))


def modules(place):
    """Return the modules of a package or a file in `flwr_ctma`."""
    path = ROOT / "flwr_ctma" / place
    return sorted(path.rglob("*.py")) if path.is_dir() else [path]


def main():
    """Print the survivors, and a line for each package."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("places", nargs="*", default=ROOMS, help="in flwr_ctma")
    parser.add_argument("--tests", nargs="+", help="test files; default: the mirrored")
    parser.add_argument("--sample", type=int, default=80, help="mutants of each place")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--lines", type=Path, help="what the tests execute")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trees = [Path(folder, str(i)).resolve() for i in range(given.jobs)]
        for tree in trees:
            shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".git", "site"))
        import_before_forking()
        if given.lines and given.lines.exists():
            tests = json.loads(given.lines.read_text())
        else:
            tests = executed(trees, given.tests or files_of_tests(given.places))
        if given.lines:
            given.lines.write_text(json.dumps(tests))
        for place in given.places:
            rng = random.Random(given.seed)
            mutants = sample(modules(place), given.sample, rng)
            killed, tried = try_mutants(trees, tests, mutants)
            print(f"{place}: {killed} of {tried} mutants killed", flush=True)


if __name__ == "__main__":
    main()
