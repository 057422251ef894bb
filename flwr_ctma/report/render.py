"""Charts as files, and the script that draws them on a page; both are Vega's.

`vl-convert-python` holds Vega, Vega-Lite and Vega-Embed, which are under the BSD
licence, and draws without a browser and without a network.
"""

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from flwr_ctma.errors import parameter_error

__all__ = ["FIGURE_FORMATS", "can_render", "printable", "vega_script", "write_chart"]

FIGURE_FORMATS = ("pdf", "svg", "png")


def can_render() -> bool:
    """Return whether the packages of the extra `report` are installed."""
    return all(find_spec(name) for name in ("vl_convert", "jinja2"))


def write_chart(spec: Mapping[str, Any], path: Path) -> None:
    """Write a chart as SVG, PDF or PNG; the suffix of the path decides.

    Raises
    ------
    ValueError
        For another suffix.
    """
    import vl_convert

    if path.suffix[1:] not in FIGURE_FORMATS:
        raise parameter_error(
            "figures", f"one of {', '.join(FIGURE_FORMATS)}", path.suffix
        )
    safe = printable(spec)
    draw: dict[str, Callable[[], str | bytes]] = {
        ".svg": lambda: vl_convert.vegalite_to_svg(safe),
        ".pdf": lambda: vl_convert.vegalite_to_pdf(safe),
        ".png": lambda: vl_convert.vegalite_to_png(safe, scale=2),
    }
    drawn = draw[path.suffix]()
    path.write_bytes(drawn.encode() if isinstance(drawn, str) else drawn)


def printable(value: Any) -> Any:
    """Replace characters that cannot be printed, in all texts of a specification.

    A NUL in a text would abort the process that draws a PDF; characters that turn the
    direction of writing would disguise a label.

    Examples
    --------
    >>> printable({"title": ["ctma(gm)", "a" + chr(0) + "b"]})
    {'title': ['ctma(gm)', 'a�b']}
    """
    if isinstance(value, str):
        return "".join(c if c.isprintable() else "\ufffd" for c in value)
    if isinstance(value, Mapping):
        return {printable(key): printable(item) for key, item in value.items()}
    if isinstance(value, list | tuple | range):
        return [printable(item) for item in value]
    return value


def vega_script() -> str:
    """Return the minified JavaScript of Vega, Vega-Lite and Vega-Embed."""
    import vl_convert

    script: str = vl_convert.javascript_bundle()  # type: ignore[call-arg]
    return script.replace("</script", "<\\/script")
