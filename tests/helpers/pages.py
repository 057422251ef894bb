"""What stands in the pages: blocks of code, commands, links and headings."""

import itertools
import re
import shlex
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

_FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.M | re.S)
_INDENTED = re.compile(r"(?:\A|\n\n)((?: {4}\S.*\n?)+)")
_COMMAND = r"(?:\w+=\S+ )?(?:flwr-ctma|flwr run|python -m|python tests/|pytest -)"
_ASSIGNMENT = re.compile(r"\w+=")


@dataclass(frozen=True)
class Block:
    """A fenced block, and the line of its page where it begins."""

    language: str
    text: str
    line: int


@dataclass(frozen=True)
class Page:
    """A page of Markdown."""

    path: Path

    @property
    def name(self):
        return self.path.relative_to(ROOT).as_posix()

    @property
    def text(self):
        return self.path.read_text(encoding="utf-8")

    @property
    def prose(self):
        return _FENCE.sub("", self.text)

    def blocks(self):
        text = self.text
        return [
            Block(
                found[2], textwrap.dedent(found[3]), text[: found.start()].count("\n")
            )
            for found in _FENCE.finditer(text)
        ]

    def commands(self):
        """Give the words of every command in blocks and indented lines."""
        consoles = [b.text for b in self.blocks() if b.language == "console"]
        indented = [
            line
            for found in _INDENTED.finditer(self.prose)
            for line in textwrap.dedent(found[1]).splitlines()
            if re.match(_COMMAND, line)
        ]
        return [words for text in [*consoles, *indented] for words in _words(text)]

    def mentions(self):
        """Give the words of every command in a sentence, which may be half of one."""
        spans = re.findall(rf"`({_COMMAND}[^`]*)`", self.prose)
        return [words for span in spans for words in _words(" ".join(span.split()))]

    def links(self):
        return re.findall(r"\]\(([^)\s]+)\)", self.prose)

    def anchors(self):
        """Give what a link may point at, as Markdown's table of contents names it."""
        headings = re.findall(r"^#+ (.+)$", self.prose, re.M)
        plain = [re.sub(r"[^\w\s-]", "", heading).strip() for heading in headings]
        return {re.sub(r"[\s-]+", "-", heading.lower()) for heading in plain}


def _words(text):
    for line in text.replace("\\\n", " ").splitlines():
        words = [word for word in shlex.split(line, comments=True) if word != "$"]
        for last, group in itertools.groupby(words, "&&".__eq__):
            # Variables that are set for one command alone come before it.
            command = list(itertools.dropwhile(_ASSIGNMENT.match, group))
            if command and not last:
                yield command


PAGES = [
    Page(path)
    for path in [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
        ROOT / "examples" / "README.md",
        *sorted(DOCS.rglob("*.md")),
    ]
]
