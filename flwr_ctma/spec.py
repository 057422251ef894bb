"""Names in a run-config and the values they stand for: `ctma(nnm(cwmed))`.

A run-config holds scalars and no inner quotes, so a rule or an attack is spelled as a
name, in parentheses the value it holds and its parameters: `bucketing(gm, size=2)`.
The spelling of a value is its `str`, and `parse(spell(x)) == x`.
"""

import ast
import dataclasses
import re
import types
import typing
from collections.abc import Mapping
from typing import Any

from flwr_ctma.errors import did_you_mean, parameter_error

__all__ = ["check_fields", "parse", "spell"]

_MAX_LENGTH = 500
_KEBAB = re.compile(r"(?<=[A-Za-z])-(?=[A-Za-z])")


def parse(text: str, table: Mapping[str, type], parameter: str) -> Any:
    """Build the value that a text spells.

    Parameters
    ----------
    text : str
        A name of the table, with what it holds and its parameters in parentheses.
        Parameters are in kebab case, as everything in a run-config.
    table : Mapping[str, type]
        Frozen dataclasses by name.
    parameter : str
        What the user calls the text, for the error: "aggregator", "attack".

    Raises
    ------
    ValueError
        For anything but a well-formed spelling: the sentence names the parameter, the
        text, the part that is wrong and what is allowed there.

    Examples
    --------
    >>> from flwr_ctma.aggregators import RULES
    >>> parse("ctma(gm(tolerance=1e-4))", RULES, "aggregator")
    CTMA(base=GeometricMedian(tolerance=0.0001))
    """
    example = next(iter(table))
    if not isinstance(text, str) or not 0 < len(text.strip()) <= _MAX_LENGTH:
        raise parameter_error(parameter, f"a name such as {example!r}", text)
    try:
        tree = ast.parse(_KEBAB.sub("_", text.strip()), mode="eval").body
    except (SyntaxError, RecursionError, MemoryError, ValueError) as error:
        raise parameter_error(
            parameter, "written like `name(key=value)`", text
        ) from error
    try:
        return _build(tree, table)
    except (ValueError, TypeError, OverflowError) as error:
        said = str(error).removesuffix(".")
        raise parameter_error(parameter, f"well-formed: {said}", text) from error


def spell(value: Any, table: Mapping[str, type]) -> str:
    """Write a value as `parse` reads it; parameters at their default are left out.

    A value of a kind that is not in the table is written as its `repr`.
    """
    name = next((name for name, kind in table.items() if kind is type(value)), None)
    if name is None:
        return repr(value)
    parts = []
    for field in dataclasses.fields(value):
        item = getattr(value, field.name)
        if item == field.default:
            continue
        if not _scalars(field.type):
            parts.append(spell(item, table))
        else:
            written = str(item).lower() if isinstance(item, bool) else item
            parts.append(f"{field.name.replace('_', '-')}={written}")
    return f"{name}({', '.join(parts)})" if parts else name


def check_fields(value: Any) -> None:
    """Raise a ValueError for a field of a dataclass that is not what it is declared.

    An int is a float too, and a bool is neither. What is declared as more than a class,
    or in quotes, is not checked.

    Examples
    --------
    >>> from flwr_ctma.aggregators import CenteredClipping
    >>> CenteredClipping(radius="2")
    Traceback (most recent call last):
    ValueError: Parameter `radius` should be of type float. Found `radius = '2'`.
    """
    for field in dataclasses.fields(value):
        item, kinds = getattr(value, field.name), _kinds(field.type)
        if not all(isinstance(kind, type) for kind in kinds):
            continue
        if isinstance(item, bool):
            right = bool in kinds
        else:
            right = isinstance(item, (*kinds, int) if float in kinds else kinds)
        if not right:
            names = " or ".join(kind.__name__ for kind in kinds)
            raise parameter_error(field.name, f"of type {names}", item)


def _build(node: ast.expr, table: Mapping[str, type]) -> Any:
    call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
    if not isinstance(call.func, ast.Name):
        raise ValueError(f"`{ast.unparse(node)}` is not a name")
    kind = table.get(call.func.id)
    if kind is None:
        close = did_you_mean(call.func.id, table)
        hint = f" (d{close[1:]})" if close else ""
        raise ValueError(
            f"`{call.func.id}` is not one of {', '.join(sorted(table))}{hint}"
        )
    fields = dataclasses.fields(kind)
    held = [f for f in fields if not _scalars(f.type)]
    if len(call.args) > len(held):
        raise ValueError(
            f"`{call.func.id}` holds {len(held)} value(s) and has {len(call.args)}; "
            f"its parameters are written {_signature(fields)}"
        )
    given = {f.name: _build(a, table) for f, a in zip(held, call.args, strict=False)}
    for keyword in call.keywords:
        field = next((f for f in fields if f.name == keyword.arg), None)
        if field is None or field.name in given:
            raise ValueError(
                f"`{call.func.id}` has no parameter `{_kebab(keyword.arg)}` to set; "
                f"it has {_signature(fields)}"
            )
        given[field.name] = (
            _scalar(call.func.id, field, keyword.value)
            if _scalars(field.type)
            else _build(keyword.value, table)
        )
    missing = [
        f.name
        for f in fields
        if f.name not in given
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        names = ", ".join(map(_kebab, missing))
        raise ValueError(f"`{call.func.id}` needs {names} in parentheses")
    return kind(**given)


def _scalar(name: str, field: "dataclasses.Field[Any]", node: ast.expr) -> Any:
    allowed = _scalars(field.type)
    try:
        value = ast.literal_eval(node)
    except ValueError:
        word = node.id if isinstance(node, ast.Name) else ast.unparse(node)
        booleans = {"true": True, "false": False}
        value = booleans.get(word, word.replace("_", "-"))
    if isinstance(value, int) and not isinstance(value, bool) and int not in allowed:
        value = float(value) if float in allowed else value
    if type(value) not in allowed:
        kinds = " or ".join(kind.__name__ for kind in allowed)
        raise ValueError(
            f"`{_kebab(field.name)}` of `{name}` is a {kinds}, not {value!r}"
        )
    return value


def _scalars(annotation: Any) -> tuple[type, ...]:
    """Scalar types that an annotation admits; none for a field that holds a value."""
    return tuple(kind for kind in _kinds(annotation) if kind in (bool, int, float, str))


def _kinds(annotation: Any) -> tuple[type, ...]:
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    kinds: tuple[type, ...] = typing.get_args(annotation) if union else (annotation,)
    return kinds


def _signature(fields: "tuple[dataclasses.Field[Any], ...]") -> str:
    named = [f"{_kebab(f.name)}=…" for f in fields if _scalars(f.type)]
    return ", ".join(named) or "none"


def _kebab(name: str | None) -> str:
    return (name or "**").replace("_", "-")
