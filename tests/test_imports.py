"""The imports of the code: one direction, no circle, public names of Flower alone."""

import ast
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import flwr_ctma

ROOT = Path(__file__).parents[1]
PACKAGE = Path(flwr_ctma.__file__).parent  # in an installation, not beside the tests
FOLDERS = {
    "flwr_ctma": PACKAGE,
    **{name: ROOT / name for name in ("clients", "server", "examples")},
}

# A package may import those above it, and those in its group where no circle arises.
ORDER = (
    ("errors", "compat"),
    ("spec", "sampling"),
    ("engine", "tracking", "simulation"),
    ("aggregators", "messages"),
    ("attacks", "optim"),
    ("mods",),
    ("strategy",),
    ("legacy", "experiments"),
    ("report",),
    ("cli",),
    ("__main__",),
)
LEVEL = {name: i for i, group in enumerate(ORDER) for name in group}

# Public packages of Flower. `flwr.common`, `flwr.client` and `flwr.server` are those of
# its legacy API.
PUBLIC = {
    *("flwr", "flwr.app", "flwr.clientapp", "flwr.clientapp.mod", "flwr.serverapp"),
    *("flwr.serverapp.strategy", "flwr.simulation"),
}
LEGACY = {"flwr.common", "flwr.client", "flwr.server", "flwr.server.strategy"}


@cache
def modules():
    """Return the path of each module, by name."""
    names = {}
    for folder in ("flwr_ctma", "clients", "server"):
        for file in FOLDERS[folder].rglob("*.py"):
            parts = file.relative_to(FOLDERS[folder].parent).with_suffix("").parts
            names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return names


def test_modules_of_all_folders_are_found():
    assert {"flwr_ctma.strategy.robust", "clients.app", "server.app"} <= set(modules())


@cache
def imports(name):
    """Return the modules that a module imports, lazily or not, of any project."""
    tree = ast.parse(modules()[name].read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            inner = full & modules().keys()
            found |= inner if len(inner) == len(full) else inner | {node.module}
    return found - {name}


def internal():
    """Yield each import of one of our modules by another."""
    for name in modules():
        for other in imports(name) & modules().keys():
            yield name, other


def package_of(name):
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else ""


def test_packages_import_to_their_left_alone():
    wrong = {
        (name, other)
        for name, other in internal()
        if name.startswith("flwr_ctma.")
        and package_of(name) != package_of(other)
        and (
            not other.startswith("flwr_ctma")
            or LEVEL.get(package_of(other), -1) > LEVEL[package_of(name)]
        )
    }
    assert wrong == set()


def circle():
    """Return the modules of a circle, or of none."""
    graph = {name: set() for name in modules()}
    for name, other in internal():
        graph[name].add(other)
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        return error.args[1]
    return []


def test_modules_import_in_no_circle():
    assert circle() == []


def test_top_of_the_package_holds_seven_files():
    names = {file.stem for file in PACKAGE.glob("*.py")}
    assert names <= {
        *("__init__", "__main__", "errors", "spec", "sampling", "mods", "compat")
    }


@pytest.mark.parametrize("folder", FOLDERS)
def test_only_compat_imports_private_names_of_flower(folder):
    wrong = []
    for file in sorted(FOLDERS[folder].rglob("*.py")):
        path = file.relative_to(FOLDERS[folder].parent)
        if path.as_posix() == "flwr_ctma/compat.py":
            continue
        allowed = PUBLIC | (LEGACY if "legacy" in path.as_posix() else set())
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
                private = [a.name for a in node.names if a.name.startswith("_")]
                if node.module.split(".")[0] == "flwr" and private:
                    wrong.append((path.as_posix(), private))
            wrong += [
                (path.as_posix(), name)
                for name in names
                if name.split(".")[0] == "flwr" and name not in allowed
            ]
    assert wrong == []
