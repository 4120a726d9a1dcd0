"""Every command that README and the guides show is one: its words and options are read as they stand there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from weft.cli.app import make_root
from weft.cli.command.grammar import DAILY, PROCESSES

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


def read(argv: list[str]) -> dict[str, Any]:
    """The values of the parameters. Raises click.UsageError."""
    command: click.Command = make_root()
    context = command.make_context("weft", list(argv))
    while isinstance(command, click.Group):
        name, below, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        assert below is not None
        context, command = below.make_context(name, rest, parent=context), below
    return context.params


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


@pytest.mark.parametrize("line", DAILY)
def test_each_line_of_the_help_for_every_day_is_read_as_it_stands(line: str) -> None:
    read(line.split())


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("set vm/web --memory 1G", "spec__memory", "1G"),
        ("set --memory 1G vm/web", "spec__memory", "1G"),
        ("set --memory 1G vm web", "words", ("web",)),
        ("set node/n1 --autonomy 1h", "spec__autonomy_seconds", "1h"),
        ("set image/new --from vm/web", "words", ("image/new",)),
        ("recommend vm/web --cpu 2", "words", ("vm/web",)),
        ("restart container/web --pull", "words", ("container/web",)),
        ("restart vm/a container/b", "words", ("vm/a", "container/b")),
        ("restore backup/b new --instant", "instant", True),
        ("logs job/nightly --task 3", "words", ("job/nightly",)),
        ("metrics device/t1 --property temperature", "words", ("device/t1",)),
        ("describe migration/m --plot m.svg", "words", ("migration/m",)),
        ("get backup/b /etc/hosts --recursive", "words", ("backup/b", "/etc/hosts")),
        ("delete project/lab --everything", "words", ("project/lab",)),
    ],
)
def test_a_short_verb_takes_the_flags_of_the_kind_that_it_names(line: str, name: str, value: object) -> None:
    assert read(line.split())[name] == value


def test_the_help_of_a_short_verb_with_an_object_lists_the_flags_of_its_kind(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(click.exceptions.Exit):
        read(["set", "vm/web", "--help"])
    assert "--memory" in capsys.readouterr().out
