"""The quick completion answers as the whole one does, or leaves it to that; it never answers from another weft's grammar."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.shell_completion import CompletionItem, ShellComplete
from tests.long import ALL_EXAMPLES

from weft.cli import quick_completion
from weft.cli.app import make_root
from weft.cli.command import completion, completion_grammar
from weft.cli.quick_completion import NotQuick, complete
from weft.cli.session import Session
from weft.contracts.clock import SystemClock
from weft.kinds.record import Kind

NAMES = ["hello", "help", "web"]
ROOT = make_root()


@functools.cache
def grammar() -> dict[str, Any]:
    """Takes a second: it isn't made where these tests are only collected."""
    made: dict[str, Any] = json.loads(json.dumps(completion_grammar.describe(ROOT)))
    return made


@pytest.fixture(autouse=True)
def known_names(monkeypatch: pytest.MonkeyPatch) -> None:
    def names(context: click.Context, kind: Kind) -> list[str]:
        return [f"{kind.name}-{name}" for name in NAMES]

    monkeypatch.setattr(completion, "_names", names)


def ask_whole(words: list[str], incomplete: str) -> list[tuple[str, str, str]]:
    session = Session(SystemClock, {"WEFT_SERVER": "https://127.0.0.1:1"})
    shell = ShellComplete(ROOT, {"obj": session}, "weft", "_WEFT_COMPLETE")
    found: list[CompletionItem[Any]] = shell.get_completions(list(words), incomplete)
    return [(item.type, item.value, item.help or "") for item in found]


def ask_quick(words: list[str], incomplete: str) -> list[tuple[str, str, str]]:
    return complete(grammar(), words, incomplete, lambda kind: [f"{kind}-{name}" for name in NAMES])


def questions() -> list[tuple[list[str], str]]:
    """After every command: nothing, an option's beginning, and each of some commands' options: every day one that many of them
    have alike after the first of them."""
    asked: list[tuple[list[str], str]] = [
        (["vms"], ""),
        (["vm", "ls"], ""),
        (["vm", "create", "x", "--image", "a"], ""),
    ]
    asked += [([], word) for word in ("", "v", "vm", "-", "--d", "zzz")]
    asked += [(["describe"], "vm/"), (["describe"], "vm/vm-h"), (["describe", "vms"], ""), (["describe", "vm/a"], "")]
    asked += [(["vm", "create", "--strategy"], start) for start in ("", "least_l", "least-loaded,", "@", "@p", "a,@pl")]
    known: set[tuple[str, str]] = set()
    for path, node in grammar()["nodes"].items():
        words = path.split()
        asked += [(words, ""), (words, "--")]
        if words[:1] in (["vm"], ["get"], ["apply"]) or len(words) == 1:
            for name, option in node["options"].items():
                alike = (name, json.dumps(option))
                if ALL_EXAMPLES or alike not in known:
                    known.add(alike)
                    asked.append(([*words, name], "--" if option["value"] is None else ""))
    return asked


def test_what_is_answered_quickly_is_what_the_whole_completion_answers() -> None:
    left = []
    for words, incomplete in questions():
        try:
            quick = ask_quick(words, incomplete)
        except NotQuick:
            left.append(words[-1])
            continue
        assert quick == ask_whole(words, incomplete), (words, incomplete)
    assert set(left) == {"--context", "cp", "maintenance", "power"}, "files beside guests, what only this machine knows"


@pytest.mark.parametrize(
    "line", ["vm create --image=t", "nosuch x", "vm exec a -- l", "vm create --nosuch a", "vm nosuch "]
)
def test_what_it_cant_be_sure_of_is_left_to_the_whole_one(line: str) -> None:
    *words, incomplete = line.split(" ")
    with pytest.raises(NotQuick):
        ask_quick(words, incomplete)


@pytest.mark.parametrize("kind", ["rolebinding", "token"])
def test_a_role_is_completed_from_the_built_in_and_the_own_ones(kind: str) -> None:
    words = [kind, "create", "x", "--role"]
    found = [value for _, value, _ in ask_quick(words, "")]
    assert found == [value for _, value, _ in ask_whole(words, "")]
    assert {"viewer", "fabric-admin", f"role-{NAMES[0]}"} <= set(found)
    assert [value for _, value, _ in ask_quick(words, "fab")] == ["fabric-admin"]


def test_names_of_another_project_are_never_taken_for_this_ones() -> None:
    assert ask_quick(["vm", "describe"], "vm-we") == [("plain", "vm-web", "")]
    for other in (["-p", "other"], ["--context", "there"]):
        with pytest.raises(NotQuick):
            ask_quick(["vm", "describe", *other], "vm-we")


def ask_script(home: Path, line: str, **more: str) -> str:
    """As a shell asks; where it isn't answered quickly `echo` is asked, which prints an empty line."""
    words = line.split(" ")
    asked = {"_WEFT_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    environ = {"HOME": str(home), "PATH": os.environ["PATH"], **asked, **more}
    script = [sys.executable, "-I", "-S", quick_completion.__file__, "echo"]
    return subprocess.run(script, env=environ, capture_output=True, text=True, timeout=30, check=True, cwd=home).stdout


def test_the_script_answers_from_its_files_alone_and_never_from_an_older_grammar_or_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = {"HOME": str(tmp_path)}
    assert ask_script(tmp_path, "weft vm desc") == "\n", "no grammar yet"
    completion_grammar.write_grammar(ROOT, environ)
    assert completion_grammar.is_fresh(environ)
    assert ask_script(tmp_path, "weft vm desc") == "plain,describe\n"
    assert ask_script(tmp_path, "weft vm describe ") == "\n", "no names yet"
    monkeypatch.chdir(tmp_path)
    names = Path(quick_completion.find_names(environ, "", "", "vm"))
    names.parent.mkdir(parents=True)
    names.write_text("hello\nweb")
    assert ask_script(tmp_path, "weft vm describe ") == "plain,hello\nplain,web\n"
    assert ask_script(tmp_path, "weft vm describe ", WEFT_PROJECT="other") == "\n"
    assert ask_script(tmp_path, "weft describe vm/w") == "plain,vm/web\n"
    os.utime(names, (1, 1))
    assert ask_script(tmp_path, "weft vm describe ") == "\n", "they are too old"
    grammar = Path(quick_completion.find_grammar(environ))
    grammar.write_text(grammar.read_text().replace('{"stamp": "', '{"stamp": "older'))
    assert not completion_grammar.is_fresh(environ)
    assert ask_script(tmp_path, "weft vm desc") == "\n"
    grammar.write_text("{")
    assert ask_script(tmp_path, "weft vm desc") == "\n"
