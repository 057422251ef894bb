"""Docstrings as this package writes them, for pages."""

import re
from typing import Any

import griffe


class Numpydoc(griffe.Extension):
    """Drop what pages say in another way.

    `name : type (default: x)` repeats the signature's default, and a `::` announces
    code, which Markdown needs no announcement for.
    """

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Mend the docstring of an object."""
        if obj.docstring is not None:
            text = obj.docstring.value
            text = re.sub(r"^(\s*\S+ : .*) \(default: .*\)$", r"\1", text, flags=re.M)
            obj.docstring.value = re.sub(r"::$", ":", text, flags=re.M)
