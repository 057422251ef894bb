"""A colour and a dash pattern for each rule, the same in every figure."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["LineStyle", "line_styles"]

# Contrast of at least 3 : 1 on white and on a dark page. Most are Okabe and Ito's,
# which differ for any colour vision.
_COLOURS = (
    *("#0072b2", "#d55e00", "#009e73", "#b85c93", "#b07800"),
    *("#2a8fc4", "#8a6fd1", "#6b8e23", "#c0392b"),
)
_DASHES = ((1, 0), (8, 3), (2, 2), (8, 3, 2, 3))
_REFERENCE = "#7f7f7f"

# Rules that figures often compare differ in colour.
_FIXED = {
    "ctma(gm)": (0, 0),
    "caf": (1, 0),
    "nnm(gm)": (2, 0),
    "nnm(cwmed)": (3, 0),
    "gm": (4, 1),
    "cwmed": (5, 1),
    "ctma(cwmed)": (6, 0),
    "krum": (7, 2),
    "cwtm": (8, 2),
    "caf, memory 0.99": (7, 1),
    "distinct(caf), memory 0.99": (3, 1),
}


@dataclass(frozen=True)
class LineStyle:
    """How a line is drawn."""

    colour: str
    dash: Sequence[int]


def line_styles(labels: Sequence[str]) -> dict[str, LineStyle]:
    """Return a style for each label.

    Common rules have fixed styles; the averages that others are compared with are grey.
    Every other label gets a style from its hash, or the next one whose colour, or else
    whose style, no earlier label of the figure has.

    Examples
    --------
    >>> line_styles(["caf", "gm"])["gm"] == line_styles(["gm"])["gm"]
    True
    """
    styles = {
        "fedavg": LineStyle(_REFERENCE, _DASHES[1]),
        "mean": LineStyle(_REFERENCE, _DASHES[2]),
    }
    styles |= {
        rule: LineStyle(_COLOURS[colour], _DASHES[dash])
        for rule, (colour, dash) in _FIXED.items()
    }
    every = [LineStyle(colour, dash) for dash in _DASHES for colour in _COLOURS]
    found = {label: styles[label] for label in labels if label in styles}
    for label in labels:
        if label not in found:
            start = int(
                hashlib.sha256(label.encode(errors="replace")).hexdigest(), 16
            ) % len(every)
            free = [*every[start:], *every[:start]]
            used = set(found.values())
            colours = {one.colour for one in used}
            unlike = [one for one in free if one.colour not in colours]
            unlike += [one for one in free if one not in used]
            found[label] = (unlike or free)[0]
    return {label: found[label] for label in labels}
