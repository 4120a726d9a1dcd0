"""The documents as pages of the site: which there are, in which order, where each lies, and where their links lead.

In the clone the documents are docs/ and the pages beside the README; in the site docs/ is the root, and the README its first page.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
FIRST, CONTENTS = "README.md", "docs/README.md"
# What lies at another place in the site; what else is in docs/ keeps its path there.
_MOVED = {
    FIRST: "index.md",
    CONTENTS: "contents.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
_FENCE = re.compile(r"^( *)(```|~~~)")
# A link, whose label may have code; or code, in which nothing is a link.
_LINK = re.compile(r"`[^`]*`|(?<!\\)\[((?:[^\[\]`]|`[^`]*`|\[[^\[\]]*\])*)\]\(([^()\s]+)\)")
_END = re.compile(r"^(\[[^\]]+\]: )(\S+)$")


class Link(NamedTuple):
    target: str  # the path in the clone; "": the page itself
    anchor: str


def list_pages(root: Path = ROOT) -> list[str]:
    """The paths of all documents in the clone."""
    found = [name for name in _MOVED if (root / name).exists()]
    found += [str(path.relative_to(root)) for path in sorted((root / "docs").rglob("*.md"))]
    return list(dict.fromkeys(found))


def place(path: str) -> str | None:
    """Where a document, or a file beside it, lies in the site; None for what the site doesn't have."""
    return _MOVED.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)


def read_order(root: Path = ROOT) -> list[tuple[str, list[tuple[str, str]]]]:
    """The sections of docs/README.md: the title of each, and of its pages titles and paths."""
    sections = list[tuple[str, list[tuple[str, str]]]]()
    for line in (root / CONTENTS).read_text().splitlines():
        if line.startswith("## "):
            sections.append((line[3:], []))
        elif line.startswith("- "):
            found = [match for match in _LINK.finditer(line) if match[2]]
            sections[-1][1].extend((_entitle(match[1]), _resolve(CONTENTS, match[2])) for match in found)
    return sections


def _entitle(label: str) -> str:
    plain = label.replace("`", "")
    return plain if plain.startswith("weft ") else plain[:1].upper() + plain[1:]


def find_links(text: str, page: str) -> list[Link]:
    """The links of a page that lead to files and headings, not to other places of the network."""
    found = list[Link]()
    for line, is_code in _read_lines(text):
        if not is_code:
            targets = [target for _, target in _LINK.findall(line) if target]
            targets += [end[2] for end in [_END.match(line)] if end is not None]
            for target in targets:
                if not _leaves(target):
                    path, _, anchor = target.partition("#")
                    found.append(Link(_resolve(page, path) if path else "", anchor))
    return found


def find_anchors(text: str) -> set[str]:
    """What the headings of a page are called in links."""
    titles = (re.match(r"#{1,6} (.*)", line) for line, is_code in _read_lines(text) if not is_code)
    return {slug(_LINK.sub(lambda match: match[1] or match[0], title[1])) for title in titles if title is not None}


def slug(title: str, separator: str = "-") -> str:
    """A heading's name in links, as GitHub gives it: both must agree, since people read the documents in both."""
    return re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", separator)


def convert(text: str, page: str, root: Path = ROOT) -> str:
    """A document's text for the site. Links lead to the places there; what the site lacks is named without a link. A list
    and a table have an empty line before them, which this dialect of Markdown wants."""
    lines = list[str]()
    before = ""
    for line, is_code in _read_lines(text):
        if not is_code:
            line = _LINK.sub(lambda match: _lead(match, page, root), line)
            if (end := _END.match(line)) and not _leaves(end[2]):
                line = end[1] + (_relate(page, end[2], root) or end[2])
            kind = _begins(line)
            if kind == "row":  # here a bar in code parts no cells
                line = re.sub(r"`[^`]*`", lambda code: code[0].replace(r"\|", "|"), line)
            if kind and before.strip() and _begins(before) != kind and not before.startswith((" ", "#")):
                lines.append("")
        lines.append(line)
        before = line
    return "\n".join(lines) + "\n"


def _lead(match: re.Match[str], page: str, root: Path) -> str:
    label, target = match.groups()
    if target is None or _leaves(target) or target.startswith("#"):
        return match[0]
    place = _relate(page, target, root)
    return f"[{label}]({place})" if place else label


def _relate(page: str, target: str, root: Path) -> str | None:
    """A link's target as the site's page has it."""
    path, mark, anchor = target.partition("#")
    end = _resolve(page, path)
    if (root / end).is_dir():
        end = f"{end}/README.md"
    here, there = place(page), place(end)
    if here is None or there is None or not (root / end).is_file():
        return None
    return os.path.relpath(there, PurePosixPath(here).parent) + mark + anchor


def _resolve(page: str, path: str) -> str:
    return os.path.normpath(PurePosixPath(page).parent / path)


def _leaves(target: str) -> bool:
    return re.match(r"[a-z]+:", target) is not None


def _begins(line: str) -> str:
    """What a line is a part of: a list's ``item``, a ``row`` of a table."""
    if re.match(r"([-*]|\d+\.) ", line):
        return "item"
    return "row" if line.startswith("|") else ""


def _read_lines(text: str) -> Iterator[tuple[str, bool]]:
    """Each line, and whether it is code or the fence around code."""
    fence = ""
    for line in text.splitlines():
        match = _FENCE.match(line)
        yield line, bool(fence or match)
        if match is not None and (not fence or match[2] == fence):
            fence = "" if fence else match[2]
