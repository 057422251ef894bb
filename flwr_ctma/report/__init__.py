"""Results of runs as a page that needs no network, and as figures for papers."""

from collections.abc import Sequence
from pathlib import Path

from flwr_ctma.errors import parameter_error
from flwr_ctma.report.export import write_figures
from flwr_ctma.report.page import render_page
from flwr_ctma.report.render import FIGURE_FORMATS, can_render
from flwr_ctma.report.runs import RecordedRun, RecordedTournament, find_runs

__all__ = ["write_report"]


def write_report(runs: Sequence[Path], out: Path, figures: Sequence[str] = ()) -> Path:
    """Write a page about runs: of one run in production as well as of a sweep.

    Parameters
    ----------
    runs : sequence of Path
        Folders of runs, comparisons, sweeps and tournaments, or folders above them.
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
        If a folder holds no run, for an unknown format of figures, and if the extra
        `report` is not installed.
    """
    if not runs:
        raise parameter_error("runs", "at least one folder", [])
    for suffix in figures:
        if suffix not in FIGURE_FORMATS:
            allowed = f"one of {', '.join(FIGURE_FORMATS)}"
            raise parameter_error("figures", allowed, suffix)
    if not can_render():
        raise ValueError(
            "A report needs the packages jinja2 and vl-convert-python. Install them "
            'with `pip install "flwr-ctma[report]"`.'
        )
    found = {item.path.resolve(): item for path in runs for item in find_runs(path)}
    single = [item for item in found.values() if isinstance(item, RecordedRun)]
    tournaments = [i for i in found.values() if isinstance(i, RecordedTournament)]
    title = ", ".join(path.resolve().name for path in runs)
    out.parent.mkdir(parents=True, exist_ok=True)
    page = render_page(title, single, tournaments, out.parent)
    out.write_text(page, encoding="utf-8", errors="replace")
    for suffix in figures:
        write_figures(single, tournaments, out.with_suffix(f".{suffix}"))
    return out
