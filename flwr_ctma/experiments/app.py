"""A Flower app: its run-config, its two components, and a run in this process."""

import importlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import click
from flwr.app import Context, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from flwr_ctma.compat import (
    LoadClientAppError,
    LoadServerAppError,
    flatten_dict,
    get_project_config,
    load_app,
    parse_config_args,
)
from flwr_ctma.errors import did_you_mean, parameter_error
from flwr_ctma.simulation.arrivals import grid_of
from flwr_ctma.simulation.grid import InProcessGrid

__all__ = [
    "App",
    "FlowerApp",
    "ModuleApp",
    "merge_overrides",
    "num_nodes_for",
    "parse_app",
]

_NUM_NODES = 17


class App(ABC):
    """A ServerApp and a ClientApp that belong together, and their run-config."""

    @abstractmethod
    def run_config(self, *overrides: str | Mapping[str, Any]) -> dict[str, Any]:
        """Return the complete run-config: the app's defaults, then the overrides.

        Parameters
        ----------
        *overrides : str or Mapping[str, Any]
            As for `flwr run --run-config`: `'seed=2 aggregator="ctma(gm)"'`; or values
            by key. Later overrides win.

        Raises
        ------
        ValueError
            For a text that is no run-config, and for a key that the app does not have.
        """

    @abstractmethod
    def check(self, run_config: Mapping[str, Any]) -> None:
        """Check the values of a complete run-config, if the app has a check.

        Raises
        ------
        ValueError
            For a wrong value.
        """

    @abstractmethod
    def load(self) -> tuple[ServerApp, ClientApp]:
        """Import the ServerApp and the ClientApp."""

    def simulate(
        self,
        num_nodes: int,
        run_config: Mapping[str, Any],
        kind: type[InProcessGrid] = InProcessGrid,
    ) -> None:
        """Run the ServerApp once in this process, on a grid of this kind."""
        server_app, client_app = self.load()
        with closing(grid_of(client_app, num_nodes, run_config, kind)) as grid:
            server_app(
                grid, Context(grid.run.run_id, 1, {}, RecordDict(), dict(run_config))
            )


@dataclass(frozen=True)
class FlowerApp(App):
    """The app in a folder with a `pyproject.toml`.

    The table `[tool.flwr-ctma]` there may have the key `check`: a function in the app,
    such as `"my_app.config:check"`, that raises a ValueError for a wrong run-config.

    Parameters
    ----------
    path : Path
        The folder.
    """

    path: Path

    def __str__(self) -> str:
        """Return the folder as an absolute path."""
        return str(self.path.resolve())

    @property
    def settings(self) -> dict[str, Any]:
        """Table `[tool.flwr.app]` of the `pyproject.toml`.

        Raises
        ------
        ValueError
            If the folder does not exist or holds no Flower app.
        """
        return dict(self._tools["flwr"]["app"])

    @cached_property
    def _tools(self) -> dict[str, Any]:
        try:
            tools = dict(get_project_config(self.path.resolve())["tool"])
            dict(tools["flwr"]["app"])
            return tools
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise parameter_error(
                "app",
                "the folder of a Flower app with its `pyproject.toml`",
                str(self.path),
                f"{' '.join(str(error).split())}. "
                "Run the command in that folder, or name the folder.",
            ) from error

    def run_config(self, *overrides: str | Mapping[str, Any]) -> dict[str, Any]:
        """Return the app's defaults, then the overrides; see `App.run_config`."""
        defaults = flatten_dict(self.settings.get("config"))
        given = merge_overrides(*overrides)
        for key in given:
            if key not in defaults:
                known = f"The app has the keys {', '.join(sorted(defaults))}."
                remedy = did_you_mean(key, defaults) or known
                raise parameter_error("run-config key", "a key of the app", key, remedy)
        return {**defaults, **given}

    def check(self, run_config: Mapping[str, Any]) -> None:
        """Check values with the function that the `pyproject.toml` names, if any."""
        name = self._tools.get("flwr-ctma", {}).get("check")
        if name is None:
            return
        try:
            check = load_app(name, LoadServerAppError, self.path)
        except (LoadServerAppError, ImportError) as error:
            expected = "a function of the app, written `module:function`"
            reason = f"{' '.join(str(error).split())}."
            raise parameter_error("check", expected, name, reason) from error
        check(run_config)

    def load(self) -> tuple[ServerApp, ClientApp]:
        """Import the components that the `pyproject.toml` names."""
        components = self.settings["components"]
        client_app = load_app(components["clientapp"], LoadClientAppError, self.path)
        server_app = load_app(components["serverapp"], LoadServerAppError, self.path)
        return cast(ServerApp, server_app), cast(ClientApp, client_app)


@dataclass(frozen=True)
class ModuleApp(App):
    """An app given as two objects in importable modules.

    Parameters
    ----------
    text : str
        `module:server_app,module:client_app`. The current folder is searched first.
    """

    text: str

    def __str__(self) -> str:
        """Return the text."""
        return self.text

    def run_config(self, *overrides: str | Mapping[str, Any]) -> dict[str, Any]:
        """Return the overrides: such an app declares no defaults and no keys."""
        return merge_overrides(*overrides)

    def check(self, run_config: Mapping[str, Any]) -> None:
        """Import both modules: such an app declares no check of values."""
        self.load()

    def load(self) -> tuple[ServerApp, ClientApp]:
        """Import both modules.

        Raises
        ------
        ValueError
            If a module or an object does not exist.
        """
        try:
            pairs = [pair.split(":") for pair in self.text.split(",")]
            if "" not in sys.path:
                sys.path.insert(0, "")
            server_app, client_app = (
                getattr(importlib.import_module(module), name) for module, name in pairs
            )
        except (ImportError, AttributeError, ValueError) as error:
            raise _app_error(self.text, str(error)) from error
        return server_app, client_app


def parse_app(text: str) -> App:
    """Return the app that a text names; it is not read yet.

    Parameters
    ----------
    text : str
        A folder, or `module:server_app,module:client_app`.

    Examples
    --------
    >>> parse_app("my_app.server:app,my_app.client:app")
    ModuleApp(text='my_app.server:app,my_app.client:app')
    """
    if not Path(text).is_dir() and ":" in text:
        return ModuleApp(text)
    return FlowerApp(Path(text))


def num_nodes_for(run_config: Mapping[str, Any], given: int | None = None) -> int:
    """Return the number of clients: as given, else the key `num-nodes`, else 17.

    Raises
    ------
    ValueError
        If it is not an integer of at least 1.
    """
    count = run_config.get("num-nodes", _NUM_NODES) if given is None else given
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise parameter_error("num-nodes", "an integer of at least 1", count)
    return count


def merge_overrides(*overrides: str | Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that the overrides of a run-config give; later ones win."""
    merged: dict[str, Any] = {}
    for one in overrides:
        merged |= _parse(one) if isinstance(one, str) else one
    return merged


def _parse(text: str) -> dict[str, Any]:
    try:
        parsed: dict[str, Any] = parse_config_args([text])
    except (click.ClickException, OSError, ValueError) as error:
        remedy = "" if isinstance(error, click.ClickException) else f"{error}."
        expected = "`key=value` pairs as in TOML, such as 'seed=1 attack=\"alie\"'"
        raise parameter_error("run-config", expected, text, remedy) from error
    if text.strip() and not parsed:
        expected = "`key=value` pairs as in TOML, such as 'seed=1 attack=\"alie\"'"
        raise parameter_error("run-config", expected, text)
    return parsed


def _app_error(text: str, reason: str) -> ValueError:
    expected = "a folder, or `module:server_app,module:client_app`"
    return parameter_error("app", expected, text, f"{reason}.")
