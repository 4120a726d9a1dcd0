"""Every command that README and the guides show is one: its words and options are read as they stand there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from weft.cli.app import make_root
from weft.cli.command.grammar import PROCESSES

ROOT = Path(__file__).resolve().parents[4]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "guide").glob("*.md"))]
_WEFT = re.compile(r"(?:\S*/)?weft")
_ENDS = set("|&;<>()")


def list_commands(page: Path) -> Iterator[list[str]]:
    """The words of each `weft …` after a prompt, up to what the shell takes for itself."""
    for block in re.findall(r"^```\w*\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            if not line.startswith("$ "):
                continue
            try:
                reader = shlex.shlex(line[2:], posix=True, punctuation_chars=True)
                reader.whitespace_split = True
                words = list(reader)
            except ValueError:  # a script over several lines
                continue
            while words:
                end = next((at for at, word in enumerate(words) if set(word) <= _ENDS), len(words))
                if _WEFT.fullmatch(words[0]) and "…" not in words:
                    yield words[1:end]
                words = words[end + 1 :]


def read(argv: list[str]) -> None:
    """Raises click.UsageError."""
    command: click.Command = make_root()
    context = command.make_context("weft", list(argv))
    while isinstance(command, click.Group):
        name, below, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        assert below is not None
        context, command = below.make_context(name, rest, parent=context), below


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_in_the_guides_are_read_as_they_stand(page: Path) -> None:
    wrong = {}
    for words in list_commands(page):
        if words and words[0] not in PROCESSES:
            try:
                read(words)
            except click.exceptions.Exit:
                continue
            except click.ClickException as problem:
                wrong[" ".join(words)] = problem.format_message()
    assert not wrong
