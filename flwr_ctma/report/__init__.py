"""What came of runs, as a page that needs nothing but itself."""

from collections.abc import Sequence
from pathlib import Path

from flwr_ctma.errors import parameter_error
from flwr_ctma.report.export import write_figures
from flwr_ctma.report.page import page
from flwr_ctma.report.runs import Run, TournamentResult, find

__all__ = ["write_report"]


def write_report(runs: Sequence[Path], out: Path, figures: Sequence[str] = ()) -> Path:
    """Write a page about runs: one in production as well as a sweep.

    Parameters
    ----------
    runs : sequence of Path
        Folders of runs, of `flwr-ctma compare` and of `flwr-ctma tournament`; or
        folders above them.
    out : Path
        The page to write.
    figures : sequence of str (default: ())
        "svg", "pdf" or "png": write the figures beside the page as well, for papers.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    ValueError
        If a folder holds no run.
    """
    if not runs:
        raise parameter_error("runs", "at least one folder", [])
    found = {item.path.resolve(): item for path in runs for item in find(path)}
    alone = [item for item in found.values() if isinstance(item, Run)]
    cups = [item for item in found.values() if isinstance(item, TournamentResult)]
    title = ", ".join(path.resolve().name for path in runs)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page(title, alone, cups), encoding="utf-8")
    for suffix in figures:
        write_figures(alone, cups, out.with_suffix(f".{suffix}"))
    return out
