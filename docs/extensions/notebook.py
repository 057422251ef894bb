"""The notebook as a page."""

import json
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).parent.parent / "tutorial.ipynb"


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Put the cells of the notebook, with their outputs, below its page's text."""
    if page.file.src_uri != "tutorial.md":
        return markdown
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join([markdown, *(part for cell in cells for part in _parts(cell))])


def _parts(cell: dict[str, Any]) -> list[str]:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return [source]
    said = ["".join(output["text"]) for output in cell["outputs"]]
    return [_fenced("python", source), *(_fenced("text", text) for text in said)]


def _fenced(language: str, text: str) -> str:
    return f"```{language}\n{text.rstrip()}\n```"
