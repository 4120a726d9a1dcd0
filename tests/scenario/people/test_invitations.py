"""A colleague's first login: one line from who runs the fabric, and a project in which it works."""

from __future__ import annotations

import io
import itertools
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.scenario.api_lab import ApiLab

from weft.cli.app import run
from weft.client.context import hash_ca, read_context, write_context
from weft.contracts.clock import SystemClock
from weft.objects.errors import NotFound


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiLab]:
    lab = ApiLab(tmp_path_factory.mktemp("invitations"))
    yield lab
    lab.close()


@pytest.fixture
def become(lab: ApiLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Work in a home of that name from now on, with the administrator's context if it is the administrator's."""
    for name in ("WEFT_CONTEXT", "WEFT_SERVER", "WEFT_TOKEN", "WEFT_PROJECT", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)

    def enter(name: str) -> Path:
        home = tmp_path / name
        home.mkdir(exist_ok=True)
        if name == "admin":
            write_context(home / ".config" / "weft" / "context.json", lab.context)
        monkeypatch.setenv("HOME", str(home))
        monkeypatch.chdir(home)
        return home

    return enter


def test_a_colleague_types_the_line_and_works(
    lab: ApiLab,
    become: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    become("admin")
    assert run(["project", "create", "crew"], SystemClock) == 0
    assert run(["project", "create", "bare", "--no-network"], SystemClock) == 0
    ranges = {one["project"]: one["spec"]["cidr"] for one in lab.client.list("network", all_projects=True).items}
    assert ranges["crew"] not in ("", ranges.get("default")) and "bare" not in ranges
    capsys.readouterr()
    assert run(["user", "invite", "ann", "-p", "crew"], SystemClock) == 0
    _, line, password = capsys.readouterr().out.splitlines()
    assert f"--ca-sha256 {hash_ca(lab.context.ca)}" in line
    assert run(["user", "invite", "ann", "-p", "crew"], SystemClock) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [line], "the password stays, and isn't shown again"
    become("ann")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(password.split()[1].encode())))
    assert run([*shlex.split(line)[1:], "--password-stdin"], SystemClock) == 0
    assert "project crew" in capsys.readouterr().err
    assert run(["network", "list", "-o", "name"], SystemClock) == 0
    assert capsys.readouterr().out == "network/default\n"


def test_of_two_invitations_at_once_one_prints_a_password_and_it_is_the_one_that_is_valid(
    lab: ApiLab, become: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    become("admin")
    words, numbers = [["user", "invite", "dot", "-p", "default"]], itertools.count()

    def invite_meanwhile(size: int) -> str:
        while words:
            assert run(words.pop(), SystemClock) == 0
        return f"{next(numbers):0{2 * size}}"

    monkeypatch.setattr("weft.cli.verbs.user.secrets.token_hex", invite_meanwhile)
    assert run(words[0][:], SystemClock) == 0
    out, err = capsys.readouterr()
    (password,) = [line.split()[1] for line in out.splitlines() if line.startswith("password")]
    assert "another invitation has just given dot a password" in err
    answer = lab.client.http.request("POST", "/v1/login", {"user": "dot", "password": password})
    assert answer.status == 201


@pytest.mark.parametrize(("flags", "code"), [(["--role", "boss"], 3), (["--server", "10.0.0.1:6443"], 2)])
def test_a_role_or_an_address_that_can_not_be_leaves_no_user(
    lab: ApiLab, become: Callable[[str], Path], flags: list[str], code: int
) -> None:
    become("admin")
    assert run(["user", "invite", "bea", "-p", "default", *flags], SystemClock) == code
    with pytest.raises(NotFound):
        lab.client.get("user", "bea")


@pytest.mark.parametrize("yes", [True, False])
def test_an_unknown_server_is_trusted_once_its_digest_was_shown_and_compared(
    lab: ApiLab,
    become: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    yes: bool,
) -> None:
    become("admin")
    name = f"cem-{str(yes).lower()}"
    assert run(["user", "invite", name, "-p", "default"], SystemClock) == 0
    password = capsys.readouterr().out.splitlines()[-1].split()[1]
    home = become(name)
    asks = [
        "login",
        "--server",
        lab.context.server,
        "--user",
        name,
        "--password-stdin",
        "--save-as",
        str(home / "c.json"),
    ]
    assert run(asks, SystemClock) == 2
    assert f"--ca-sha256 {hash_ca(lab.context.ca)}" in capsys.readouterr().err
    monkeypatch.setattr("weft.cli.verbs.login.is_terminal", lambda stream: True)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(f"{'y' if yes else 'n'}\n{password}\n".encode())))
    assert run(asks, SystemClock) == (0 if yes else 4)
    assert hash_ca(lab.context.ca) in capsys.readouterr().err
    assert (home / "c.json").exists() is yes
    if yes:
        assert read_context(home / "c.json").ca.strip() == lab.context.ca.strip()


@pytest.mark.parametrize(
    ("content", "digest", "said"),
    [
        (b"\xff\xfe", None, "can't be read: it is not text in UTF-8"),
        (b"hello", None, "is not a certificate"),
        (None, None, "can't be read: no such file or directory"),
        (b"CA", "0" * 64, "has another digest"),
        (b"CA", "12ab", "--ca-sha256: '12ab' is not a SHA-256 digest"),
    ],
)
def test_a_ca_that_can_not_be_used_is_refused_in_words(
    content: bytes | None,
    digest: str | None,
    said: str,
    lab: ApiLab,
    become: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = become("guest") / "ca.crt"
    if content is not None:
        file.write_bytes(lab.context.ca.encode() if content == b"CA" else content)
    flags = ["--ca-sha256", digest] if digest else []
    assert run(["login", "--server", lab.context.server, "--ca", str(file), "--user", "ann", *flags], SystemClock) == 2
    assert said in capsys.readouterr().err
