"""A Flower app as it lies in a folder: its configuration, and a run in this process."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

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
from flwr_ctma.errors import parameter_error
from flwr_ctma.simulation.arrivals import grid_of
from flwr_ctma.simulation.grid import InProcessGrid

__all__ = ["FlowerApp"]


@dataclass(frozen=True)
class FlowerApp:
    """The app in a folder, whose `pyproject.toml` describes it.

    Parameters
    ----------
    path : Path
        The folder.
    """

    path: Path

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Its table `[tool.flwr.app]`.

        Raises
        ------
        ValueError
            If there is no such folder, or it holds no Flower app.
        """
        try:
            settings: dict[str, Any] = get_project_config(self.path)
            return dict(settings["tool"]["flwr"]["app"])
        except (OSError, ValueError, LookupError) as error:
            raise parameter_error(
                "app",
                "the folder of a Flower app, with its `pyproject.toml`",
                str(self.path),
                "Run the command in that folder, or name it.",
            ) from error

    def run_config(self, *overrides: str | Mapping[str, Any]) -> dict[str, Any]:
        """Spell out the run-config: the app's defaults, then what differs.

        Parameters
        ----------
        *overrides : str or Mapping[str, Any]
            As for `flwr run --run-config`: `'seed=2 aggregator="ctma(gm)"'`; or values
            by key. What comes later counts.

        Raises
        ------
        ValueError
            For a key that the app does not have.
        """
        defaults = flatten_dict(self.settings.get("config"))
        given: dict[str, Any] = {}
        for one in overrides:
            given |= parse_config_args([one]) if isinstance(one, str) else one
        for key in given:
            if key not in defaults:
                close = difflib.get_close_matches(key, defaults, n=1)
                raise parameter_error(
                    "run-config key",
                    f"one of {', '.join(sorted(defaults))}",
                    key,
                    f"Did you mean `{close[0]}`?" if close else "",
                )
        return {**defaults, **given}

    def load(self) -> tuple[ServerApp, ClientApp]:
        """Import its ServerApp and its ClientApp."""
        components = self.settings["components"]
        client_app = load_app(components["clientapp"], LoadClientAppError, self.path)
        server_app = load_app(components["serverapp"], LoadServerAppError, self.path)
        return cast(ServerApp, server_app), cast(ClientApp, client_app)

    def simulate(
        self,
        num_nodes: int,
        run_config: Mapping[str, Any],
        kind: type[InProcessGrid] = InProcessGrid,
    ) -> None:
        """Run it in this process, on a grid of that kind."""
        server_app, client_app = self.load()
        grid = grid_of(client_app, num_nodes, run_config, kind)
        server_app(
            grid, Context(grid.run.run_id, 1, {}, RecordDict(), dict(run_config))
        )
