"""Where backports come from is read out of apt's own sources, in both of their formats."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


def load_tool() -> ModuleType:
    path = Path(__file__).parents[3] / "tools" / "backports.py"
    spec = importlib.util.spec_from_file_location("backports", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


backports = load_tool()

DEB822 = """\
Types: deb deb-src
# a comment between
URIs: https://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: https://mirror.example/debian-security
Suites: bookworm-security
Components: main
"""


def plan(name: str, text: str) -> str:
    stanza = backports.plan_backports(backports.read_stanzas(name, text))
    return "" if stanza is None else backports.write_stanza(stanza)


def test_a_deb822_source_lends_its_mirror_and_key() -> None:
    assert plan("debian.sources", DEB822).splitlines() == [
        "Components: main",
        "Types: deb",
        "Uris: https://mirror.example/debian",
        "Suites: bookworm-backports",
        "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg",
    ]


def test_a_one_line_source_lends_its_mirror_and_options() -> None:
    text = (
        "# deb http://old.example/debian bookworm main\n"
        "deb [arch=amd64,arm64 signed-by=/k.gpg] http://m.example/d bookworm main # x\n"
    )
    assert plan("sources.list", text).splitlines() == [
        "Types: deb",
        "Uris: http://m.example/d",
        "Suites: bookworm-backports",
        "Components: main",
        "Architectures: amd64 arm64",
        "Signed-By: /k.gpg",
    ]


def test_what_it_prints_is_read_back_as_backports() -> None:
    assert plan("weft-backports.sources", plan("debian.sources", DEB822)) == ""


def test_nothing_is_added_where_backports_are_configured() -> None:
    assert plan("sources.list", "deb http://a/d bookworm main\ndeb http://a/d bookworm-backports main contrib\n") == ""


def test_backports_without_main_do_not_count() -> None:
    assert "bookworm-backports" in plan(
        "sources.list", "deb http://a/d bookworm main\ndeb http://a/d bookworm-backports contrib\n"
    )


def test_a_key_written_into_the_source_goes_along_whole() -> None:
    key = "\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mQINBF\n -----END PGP PUBLIC KEY BLOCK-----"
    text = f"Types: deb\nURIs: http://a/d\nSuites: bookworm\nComponents: main\nSigned-By:{key}\n"
    assert f"Signed-By: {key}\n" in plan("debian.sources", text)


def test_a_mirror_list_and_a_release_called_stable_work_too() -> None:
    uris = "mirror+file:///etc/apt/mirrors/debian.list"
    text = f"Types: deb\nURIs: {uris}\nSuites: stable stable-updates\nComponents: main\n"
    assert f"Uris: {uris}\nSuites: bookworm-backports\n" in plan("debian.sources", text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "deb-src http://a/d bookworm main\n",
        "deb cdrom:[Debian]/ bookworm main\n",
        "deb http://a/d bookworm-updates main\n",
        "deb http://a/d trixie main\n",
        "deb http://a/d bookworm contrib\n",
    ],
)
def test_without_a_usable_source_it_says_so(text: str) -> None:
    with pytest.raises(LookupError, match="bookworm"):
        plan("sources.list", text)


def test_a_disabled_source_lends_nothing() -> None:
    with pytest.raises(LookupError):
        plan("debian.sources", f"Enabled: no\n{DEB822.split(chr(10) * 2)[0]}\n")


def test_the_tool_reads_a_whole_apt_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list.d" / "debian.sources").write_text(DEB822)
    (tmp_path / "sources.list.d" / "old.list.disabled").write_text("deb http://a/d bookworm-backports main\n")
    assert backports.main(tmp_path) == 0
    assert "Suites: bookworm-backports" in capsys.readouterr().out


def test_the_tool_fails_with_a_sentence_where_apt_has_no_sources(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert backports.main(tmp_path) == 1
    assert "no source for Debian 12" in capsys.readouterr().err
