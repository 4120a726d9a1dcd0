"""A nix file is evaluated by itself: no store, no network, no files beyond its folder, in bounded time and size."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from weft.cli.manifest import nix_text
from weft.cli.manifest.nix_text import read_nix
from weft.objects.errors import InvalidInput, TooLarge, Unavailable, WeftError


def evaluate(folder: Path, text: str) -> object:
    path = folder / "a.nix"
    path.write_text(text)
    return read_nix(path, "a.nix")[0].value


def refusal(folder: Path, text: str) -> WeftError:
    with pytest.raises(WeftError) as caught:
        evaluate(folder, text)
    return caught.value


def test_an_expression_and_a_function_called_with_nothing_give_the_same(tmp_path: Path) -> None:
    assert evaluate(tmp_path, "{ cpu = 1 + 1; }") == {"cpu": 2}
    assert evaluate(tmp_path, "{ cpu ? 2, ... }: { inherit cpu; }") == {"cpu": 2}


def test_neighbours_may_be_imported(tmp_path: Path) -> None:
    (tmp_path / "base.nix").write_text('{ image = "tiny"; }')
    assert evaluate(tmp_path, "import ./base.nix // { cpu = 1; }") == {"image": "tiny", "cpu": 1}


def test_other_files_the_network_and_the_environment_are_out_of_reach(tmp_path: Path) -> None:
    assert "restricted mode" in refusal(tmp_path, "{ a = builtins.readFile /etc/hostname; }").message
    assert "restricted mode" in refusal(tmp_path, '{ a = builtins.fetchurl "http://127.0.0.1:1/"; }').message
    assert evaluate(tmp_path, '{ a = builtins.getEnv "PATH"; }') == {"a": ""}


def test_an_expression_without_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nix_text, "CPU_SECONDS", 1)
    inner = "builtins.foldl' (x: y: x + y) n (builtins.genList (x: x) 3000)"
    text = f"{{ a = builtins.foldl' (x: y: x + y) 0 (builtins.genList (n: {inner}) 1000000); }}"
    assert "it took more than 1 s of processor time" in refusal(tmp_path, text).message


def test_an_expression_that_waits_for_a_pipe_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nix_text, "WAIT_SECONDS", 1)
    os.mkfifo(tmp_path / "pipe")
    message = refusal(tmp_path, "{ a = builtins.readFile ./pipe; }").message
    assert message.endswith("nix: the expression did not end within 1 s")


def test_output_without_measure_is_refused(tmp_path: Path) -> None:
    problem = refusal(tmp_path, "{ a = builtins.genList (x: x) 1000000; }")
    assert isinstance(problem, TooLarge)


def test_what_it_throws_is_told_at_its_place(tmp_path: Path) -> None:
    problem = refusal(tmp_path, '{\n  a = throw "no such size";\n}')
    assert problem.message == "a.nix:2:3: nix: no such size"
    assert isinstance(problem, InvalidInput)


def test_a_machine_without_nix_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    problem = refusal(tmp_path, "{ }")
    assert isinstance(problem, Unavailable)
    assert problem.hint == "apt-get install nix-bin"
