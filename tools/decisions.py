"""Writes the index of the decisions, by subject, from the fields below the titles of their pages.

    python3 tools/decisions.py > docs/decisions/README.md

Exits 1 with a sentence when a page lacks a field, or has one with another form.
"""

from __future__ import annotations

import re
import sys
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "decisions"
SUBJECTS = (
    "objects",
    "store",
    "access",
    "limits",
    "placement",
    "leases",
    "jobs",
    "VMs",
    "containers",
    "functions",
    "images",
    "volumes",
    "snapshots",
    "backups",
    "migration",
    "networks",
    "services",
    "nodes",
    "monitoring",
    "insight",
    "clusters",
    "devices",
    "command line",
    "dashboard",
    "house",
)
HEAD = re.compile(r"# .+\n\n- Subject: (.+)\n- State: (.+)\n- In a line: (.+)\n\n")
STATE = re.compile(r"holds|(?:amended|replaced) by \[\d{4}\]\([^)]+\)(?:, \[\d{4}\]\([^)]+\))*")


class Page(NamedTuple):
    file: str
    subject: str
    state: str
    line: str

    @property
    def number(self) -> str:
        return self.file[:4]


def read_page(path: Path) -> Page:
    """Raises ValueError with a sentence for people."""
    head = HEAD.match(path.read_text())
    if head is None:
        raise ValueError(f'{path.name}: below the title stand "- Subject: …", "- State: …" and "- In a line: …"')
    subject, state, line = head.groups()
    if subject not in SUBJECTS:
        raise ValueError(f"{path.name}: Subject: {subject!r} is none of {', '.join(SUBJECTS)}")
    if not STATE.fullmatch(state):
        raise ValueError(f'{path.name}: State: {state!r} is not "holds", "amended by [NNNN](page)" or "replaced by …"')
    named = re.findall(r"\[(\d{4})\]\(([^)]+)\)", state)
    if wrong := [file for number, file in named if not file.startswith(number) or not (path.parent / file).exists()]:
        raise ValueError(f"{path.name}: State: there is no page {wrong[0]}")
    return Page(path.name, subject, state, line)


def name_unused(pages: list[Page]) -> list[str]:
    """Numbers without a page, below the highest that has one: alone, or as the ends of a range."""
    used = {int(page.number) for page in pages}
    unused = [number for number in range(1, max(used)) if number not in used]
    ranges = []
    for _, run in groupby(enumerate(unused), lambda place: place[1] - place[0]):
        numbers = [f"{number:04}" for _, number in run]
        ranges.append(numbers[0] if len(numbers) == 1 else f"{numbers[0]}–{numbers[-1]}")
    return ranges


def write_index(folder: Path = FOLDER) -> str:
    """The text of README.md. Raises ValueError for a page whose fields have another form."""
    pages = [read_page(path) for path in sorted(folder.glob("[0-9]*.md"))]
    lines = [
        "# Decisions",
        "",
        "One page each: what was open, what was chosen, what it costs, how to take it out again. `python3 tools/decisions.py > "
        "docs/decisions/README.md` writes this index from the fields below each title: the subject, what has become of the "
        "decision (it holds, or a later page amends or replaces it), and the decision in a line.",
        "",
        f"Numbers are given out before pages are written, so some have none: {', '.join(name_unused(pages))}.",
    ]
    for subject in SUBJECTS:
        lines += ["", f"## {subject[0].upper()}{subject[1:]}", "", "| page | in a line | state |", "|---|---|---|"]
        lines += [
            f"| [{page.number}]({page.file}) | {page.line} | {page.state} |"
            for page in pages
            if page.subject == subject
        ]
    return "\n".join(lines) + "\n"


def main() -> int:
    try:
        sys.stdout.write(write_index())
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
