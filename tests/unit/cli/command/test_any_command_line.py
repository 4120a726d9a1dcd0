"""Whatever stands on the command line, it ends with a code that is documented and words for people, never a traceback."""

from __future__ import annotations

import contextlib
import functools
import io
import sys
from pathlib import Path

import click
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.long import examples

from weft.cli.app import make_root, run
from weft.cli.command.exit_codes import MEANINGS
from weft.contracts.clock import SystemClock

CODES = {*MEANINGS, 128 + 13}
AVOIDED = {"build"}  # it works here and now, without asking a server


def words_of(command: click.Command, context: click.Context) -> tuple[set[str], set[str]]:
    """All nouns and verbs, and all options, of the whole tree."""
    words, options = set(), set()
    for param in command.params:
        options.update(opt for opt in (*param.opts, *param.secondary_opts) if opt.startswith("-"))
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            if name in AVOIDED or (found := command.get_command(context, name)) is None:
                continue
            inner_words, inner_options = words_of(found, context)
            words |= {name, *inner_words}
            options |= inner_options
    return words, options


@functools.cache
def everything() -> tuple[list[str], list[str]]:
    """Takes a second: it isn't made where these tests are only collected."""
    words, options = words_of(root := make_root(), click.Context(root))
    return sorted(words), sorted(options)


text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
values = st.sampled_from(
    ["web", "vm/web", "n1", "4G", "-5G", "1h", "0", "-1", "1e999", "NaN", "a=b", "a in (b,c)", "key!=", "8080:80", "json", "@x",
     "jsonpath=", "file:///etc/shadow", "/", "-", "--", "", "{", "=", "vm/../x", "x" * 300, "ünïcode", "\x1b[31m", "٣", "a\nb"]
)  # fmt: skip
word = st.deferred(lambda: st.sampled_from(everything()[0]))
option = st.deferred(lambda: st.sampled_from(everything()[1]))
argument = st.one_of(word, word, option, values, st.builds("{}={}".format, option, values), text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home, and a working folder whose context names a server that isn't there."""
    folder = tmp_path_factory.mktemp("home")
    (folder / ".weft").mkdir()
    (folder / "context.json").write_text(
        '{"server": "https://127.0.0.1:1", "ca": "", "token": "t", "project": "default"}'
    )
    (folder / "context.json").chmod(0o600)
    return folder


def test_there_is_much_to_choose_from() -> None:
    words, options = everything()
    assert {"vm", "create", "apply", "explain", "list"} <= {*words} and {"--image", "-o", "--yes"} <= {*options}


@settings(max_examples=examples(250), deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(argv=st.lists(argument, max_size=6), stdin=text)
def test_any_command_line_ends_with_a_documented_code(
    folder: Path, monkeypatch: pytest.MonkeyPatch, argv: list[str], stdin: str
) -> None:
    if AVOIDED & set(argv):
        return
    monkeypatch.chdir(folder)
    for name, value in (
        ("HOME", folder),
        ("EDITOR", "false"),
        ("WEFT_CONTEXT", folder / "context.json"),
        ("VISUAL", "false"),
    ):
        monkeypatch.setenv(name, str(value))
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.StringIO()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode()), "utf-8"))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(argv, SystemClock)
    said = err.getvalue()
    assert code in CODES, (argv, code)
    assert "Traceback" not in said and "this is a defect" not in said, said
    out.flush()
    assert code == 0 or said.strip() or out.buffer.tell(), (argv, code)  # doctor and diff speak on stdout
