"""Charts as SVG that takes its colours from the page, so that it follows its theme."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape

from flwr_ctma.report.groups import Spread

__all__ = ["line_charts"]

_WIDTH, _HEIGHT = 560, 300
_LEFT, _TOP, _BOTTOM = 48, 12, 36
_LETTER = 7.3  # width of a letter of a label, about
_LONGEST = 30  # letters of a label that are shown
_GAP = 15.0  # between labels


def line_charts(
    panels: Mapping[str, Mapping[str, Spread]], shares: bool
) -> Iterator[str]:
    """Draw a chart for each panel, all on the same axes and with the same colours.

    Lines are means, bands go from the least to the greatest.

    Parameters
    ----------
    panels : Mapping[str, Mapping[str, Spread]]
        Title → label → curve. Titles are for those who cannot see the chart.
    shares : bool
        Whether values are shares, shown from 0 to 100 %; else they are numbers of any
        size, on a logarithmic axis if they differ by a factor of 50.
    """
    curves = [curve for panel in panels.values() for curve in panel.values()]
    labels = list(dict.fromkeys(label for panel in panels.values() for label in panel))
    axis = _share_axis() if shares else _number_axis(curves)
    last = max((c.rounds[-1] for c in curves if c.rounds), default=1) or 1
    for title, panel in panels.items():
        yield _chart(panel, axis, last, labels, title)


def _chart(
    curves: Mapping[str, Spread],
    axis: "_Axis",
    last: int,
    labels: Sequence[str],
    title: str,
) -> str:
    right = 14 + _LETTER * min(max(map(len, labels)), _LONGEST)
    colours = {label: f"c{i % 7}" for i, label in enumerate(labels)}
    width = _WIDTH - _LEFT - right
    height = _HEIGHT - _TOP - _BOTTOM

    def x(number: float) -> float:
        return _LEFT + width * number / last

    def y(value: float) -> float:
        return _TOP + height * (1 - min(max(axis.place(value), 0.0), 1.0))

    parts = [
        f'<line class="grid" x1="{_LEFT}" x2="{_LEFT + width:.1f}" y1="{y(tick):.1f}" '
        f'y2="{y(tick):.1f}"/><text class="tick" x="{_LEFT - 7}" y="{y(tick) + 4:.1f}" '
        f'text-anchor="end">{axis.name(tick)}</text>'
        for tick in axis.ticks
    ]
    parts += [
        f'<text class="tick" x="{x(number):.1f}" y="{_HEIGHT - 17}" '
        f'text-anchor="middle">{number}</text>'
        for number in _round_ticks(last)
    ]
    parts.append(
        f'<text class="tick" x="{_LEFT + width:.1f}" y="{_HEIGHT - 2}" '
        'text-anchor="end">round</text>'
    )
    for label, curve in curves.items():
        parts.append(_band(curve, x, y, colours[label]))
        parts.append(f'<path class="line {colours[label]}" d="{_path(curve, x, y)}"/>')
    for label, left, middle in _ends(curves, x, y):
        parts.append(
            f'<text class="label {colours[label]}" x="{left + 7:.1f}" '
            f'y="{middle + 4:.1f}">{escape(_short(label))}</text>'
        )
    data = {
        "left": _LEFT,
        "width": round(width, 1),
        "last": last,
        "curves": {
            label: {
                n: axis.name(v, exact=True)
                for n, v in zip(c.rounds, c.mean, strict=True)
                if v is not None
            }
            for label, c in curves.items()
        },
    }
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{escape(title)}" data-curves="{escape(json.dumps(data))}">'
        f"{''.join(parts)}</svg>"
    )


class _Axis:
    """Where values stand between 0 and 1, and how they are written."""

    def __init__(
        self,
        ticks: Sequence[float],
        place: Callable[[float], float],
        name: Callable[[float, bool], str],
    ) -> None:
        self.ticks = ticks
        self.place = place
        self._name = name

    def name(self, value: float, exact: bool = False) -> str:
        return self._name(value, exact)


def _share_axis() -> _Axis:
    return _Axis(
        [0, 0.2, 0.4, 0.6, 0.8, 1.0],
        lambda value: value,
        lambda value, exact: f"{100 * value:.1f} %" if exact else f"{100 * value:.0f}",
    )


def _number_axis(curves: Sequence[Spread]) -> _Axis:
    values = [v for c in curves for v in (*c.least, *c.greatest) if v is not None]
    low, high = min(values, default=0.0), max(values, default=1.0)

    def name(value: float, exact: bool) -> str:
        return f"{value:.4g}" if exact else f"{value:g}"

    if low > 0 and high > 50 * low:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        return _Axis(
            [10.0**p for p in range(first, last + 1, max(-(-(last - first) // 5), 1))],
            lambda v: (math.log10(max(v, 1e-300)) - first) / (last - first),
            name,
        )
    low = min(low, 0.0)
    step = _step((high - low) or 1.0)
    top = math.ceil(high / step) * step or step
    bottom = math.floor(low / step) * step
    count = round((top - bottom) / step)
    return _Axis(
        [bottom + step * i for i in range(count + 1)],
        lambda v: (v - bottom) / (top - bottom),
        name,
    )


def _step(extent: float) -> float:
    """Give a round number that fits four times or so."""
    size = 10 ** math.floor(math.log10(extent / 4))
    return float(next(size * f for f in (1, 2, 2.5, 5, 10) if size * f >= extent / 4))


def _round_ticks(last: int) -> list[int]:
    step = max(round(_step(last)), 1)
    return list(range(0, last + 1, step))


def _segments(curve: Spread) -> list[list[int]]:
    """Give the positions of rounds with a value, cut where there is none."""
    segments: list[list[int]] = [[]]
    for i, value in enumerate(curve.mean):
        if value is None:
            segments.append([])
        else:
            segments[-1].append(i)
    return [segment for segment in segments if segment]


def _path(
    curve: Spread, x: Callable[[float], float], y: Callable[[float], float]
) -> str:
    return "".join(
        "M"
        + "L".join(f"{x(curve.rounds[i]):.1f} {y(curve.mean[i] or 0):.1f}" for i in s)
        # A single round is a dot: a line of no length with round ends.
        + ("h.01" if len(s) == 1 else "")
        for s in _segments(curve)
    )


def _band(
    curve: Spread,
    x: Callable[[float], float],
    y: Callable[[float], float],
    colour: str,
) -> str:
    if curve.least == curve.greatest:
        return ""
    outlines = []
    for segment in _segments(curve):
        upper = [
            f"{x(curve.rounds[k]):.1f} {y(curve.greatest[k] or 0):.1f}" for k in segment
        ]
        lower = [
            f"{x(curve.rounds[k]):.1f} {y(curve.least[k] or 0):.1f}" for k in segment
        ]
        outlines.append(f"M{'L'.join([*upper, *reversed(lower)])}Z")
    return f'<path class="band {colour}" d="{"".join(outlines)}"/>'


def _ends(
    curves: Mapping[str, Spread],
    x: Callable[[float], float],
    y: Callable[[float], float],
) -> Iterator[tuple[str, float, float]]:
    """Give each label, and where its line ends; above that if rounds go on."""
    last = max(max(curve.rounds) for curve in curves.values())
    whole = []
    for label, curve in curves.items():
        end = _segments(curve)[-1][-1]
        number, height = curve.rounds[end], y(curve.mean[end] or 0)
        if number == last:
            whole.append((height, label))
        else:
            yield label, x(number), height - _GAP / 2
    whole.sort()
    for (_, label), height in zip(whole, _apart([h for h, _ in whole]), strict=True):
        yield label, x(last), height


def _apart(heights: Sequence[float]) -> list[float]:
    """Move sorted labels apart, each near its line."""
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + _GAP) if placed else height)
    excess = max(placed[-1] - (_HEIGHT - _BOTTOM), 0.0) if placed else 0.0
    return [height - excess for height in placed]


def _short(label: str) -> str:
    return label if len(label) <= _LONGEST else f"{label[: _LONGEST - 1]}…"
