"""The spelling of rules and attacks in a run-config: `ctma(nnm(cwmed))`.

A run-config holds scalars without inner quotes, so a rule or an attack is written as a
name, followed in parentheses by the value that it holds and by its parameters:
`bucketing(gm, size=2)`. `str` writes a value that way, and `parse(spell(x)) == x`.
"""

import ast
import dataclasses
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flwr_ctma.errors import did_you_mean, parameter_error

__all__ = ["check_fields", "parse", "spell"]

_MAX_LENGTH = 500
_MAX_DEPTH = 64
_KEBAB = re.compile(r"(?<=[A-Za-z])-(?=[A-Za-z])")
_PARAMETER = re.compile(
    r"Parameter (`\w+` should be .+)\. Found `\w+ = (.+)`\. ?(.*)", re.DOTALL
)


def parse(
    text: str,
    table: Mapping[str, type],
    parameter: str,
    same: Mapping[str, str] | None = None,
    nearest: Mapping[str, tuple[str, str]] | None = None,
) -> Any:
    """Build the value that a text spells.

    Parameters
    ----------
    text : str
        A name of the table, with the value it holds and its parameters in parentheses.
        Parameters are in kebab case, as all keys of a run-config. At most 500
        characters and 64 names deep.
    table : Mapping[str, type]
        Frozen dataclasses by name.
    parameter : str
        The user's name of the text, for errors: "aggregator", "attack".
    same : Mapping[str, str], optional
        Other names, to names of the table.
    nearest : Mapping[str, tuple[str, str]], optional
        Other names, to the name of the table that an error suggests, and a verb phrase
        that says how its value differs.

    Raises
    ------
    ValueError
        If the spelling is not well-formed: the sentence names the parameter, the text,
        the part that is wrong and what is allowed in its place.

    Examples
    --------
    >>> from flwr_ctma.aggregators import RULES
    >>> parse("ctma(gm(tolerance=1e-4))", RULES, "aggregator")
    CTMA(base=GeometricMedian(tolerance=0.0001))
    """
    example = min(table, key=len)
    if not isinstance(text, str) or not 0 < len(text.strip()) <= _MAX_LENGTH:
        raise parameter_error(parameter, f"a name such as {example!r}", text)
    try:
        tree = ast.parse(_KEBAB.sub("_", text.strip()), mode="eval").body
    except (SyntaxError, RecursionError, MemoryError, ValueError) as error:
        raise parameter_error(
            parameter, "written like `name(key=value)`", text
        ) from error
    try:
        return _Grammar(table, same or {}, nearest or {}).build(tree)
    except (ValueError, TypeError, OverflowError) as error:
        said, remedy = (*map(str, error.args), "", "")[:2]
        if inner := _PARAMETER.fullmatch(said):
            said, remedy = f"{inner[1]}, not {inner[2]}", inner[3]
        expected = f"well-formed: {said.removesuffix('.')}"
        raise parameter_error(parameter, expected, text, remedy) from error


def spell(value: Any, table: Mapping[str, type]) -> str:
    """Write a value as `parse` reads it, without parameters at their default.

    A value whose class is not in the table is written as its `repr`.
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
    """Raise a ValueError for a field of a dataclass that has not its declared type.

    An int is a float too, and a bool is neither. Fields declared with more than a class
    or a union of classes, or in quotes, are not checked.

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


@dataclass(frozen=True)
class _Grammar:
    table: Mapping[str, type]
    same: Mapping[str, str]
    nearest: Mapping[str, tuple[str, str]]

    def build(self, node: ast.expr, depth: int = 1) -> Any:
        """Build the value of a syntax tree."""
        if depth > _MAX_DEPTH:
            raise ValueError(f"names are nested at most {_MAX_DEPTH} deep")
        call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
        if not isinstance(call.func, ast.Name):
            raise ValueError(f"`{ast.unparse(node)}` is not a name")
        name = call.func.id
        kind = self._kind(name)
        fields = dataclasses.fields(kind)
        held = [f for f in fields if not _scalars(f.type)]
        if len(call.args) > len(held):
            raise ValueError(
                f"`{name}` holds {len(held)} value(s) and has {len(call.args)}; "
                f"its parameters are written {_signature(fields)}"
            )
        given = {
            f.name: self.build(a, depth + 1)
            for f, a in zip(held, call.args, strict=False)
        }
        for keyword in call.keywords:
            parameter = next((f for f in fields if f.name == keyword.arg), None)
            if parameter is None or parameter.name in given:
                raise ValueError(
                    f"`{name}` has no parameter `{_kebab(keyword.arg)}` to set; "
                    f"it has {_signature(fields)}"
                )
            given[parameter.name] = (
                _scalar(name, parameter, keyword.value)
                if _scalars(parameter.type)
                else self.build(keyword.value, depth + 1)
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
            raise ValueError(f"`{name}` needs {names} in parentheses")
        return kind(**given)

    def _kind(self, name: str) -> type:
        kind = self.table.get(self.same.get(name, name))
        if kind is not None:
            return kind
        names = ", ".join(sorted(self.table))
        if name in self.nearest:
            close, difference = self.nearest[name]
            remedy = f"Did you mean `{close}`? It {difference}."
        else:
            remedy = did_you_mean(name, self.table, self.same)
        known = "a known name" if remedy else f"one of {names}"
        raise ValueError(f"`{name}` is not {known}", remedy)


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
