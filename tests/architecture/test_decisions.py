"""Each decision says what it is about and whether it holds, and the index follows from that."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tools.decisions import FOLDER, Page, name_unused, write_index

from weft.kinds.registry import KINDS


def test_the_index_of_decisions_is_what_their_pages_say() -> None:
    text = write_index()
    assert (FOLDER / "README.md").read_text() == text, "python3 tools/decisions.py > docs/decisions/README.md"


@pytest.mark.parametrize(
    ("head", "words"),
    [
        ("# A\n\n**Open.** B", "below the title"),
        ("# A\n\n- Subject: weather\n- State: holds\n- In a line: b\n\n", "'weather' is none of objects"),
        ("# A\n\n- Subject: store\n- State: fine\n- In a line: b\n\n", "'fine' is not"),
        ("# A\n\n- Subject: store\n- State: amended by [0009](0009-b.md)\n- In a line: b\n\n", "no page 0009-b.md"),
    ],
)
def test_a_page_with_a_wrong_field_is_named(tmp_path: Path, head: str, words: str) -> None:
    (tmp_path / "0001-a.md").write_text(head)
    with pytest.raises(ValueError, match="0001-a.md: .*" + words.replace(".", r"\.")):
        write_index(tmp_path)


def test_numbers_without_a_page_are_listed_as_ranges() -> None:
    pages = [Page(f"{number:04}-a.md", "store", "holds", "b") for number in (1, 3, 4, 8)]
    assert name_unused(pages) == ["0002", "0005–0007"]


def test_a_field_of_an_action_or_mark_is_not_named_as_one_of_a_spec() -> None:
    parts = [part for kind in KINDS for part in (kind.actions, kind.marks) if part is not None]
    moved = {name for part in parts for name in part.__struct_fields__}
    moved -= {name for kind in KINDS for name in kind.spec.__struct_fields__}
    named = [
        (path.name, name) for path in FOLDER.glob("0*.md") for name in re.findall(r"\bspec\.(\w+)", path.read_text())
    ]
    assert [(page, name) for page, name in named if name in moved] == []
    assert len(named) > 20 and len(moved) > 20
