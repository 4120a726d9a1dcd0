"""Files and folders to and from a guest, which is this machine here, and may be anything."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import click
import pytest
from tests.scenario.stream_far_end import far_end

from weft.cli.command.target import read_targets
from weft.cli.session import Session
from weft.cli.verbs import cp
from weft.client.context import Context
from weft.kinds.registry import find_kind
from weft.objects.errors import DriverFailed, InvalidInput, NotFound

WEB = read_targets(find_kind("vm"), ["web"], ("vm",))[0]


class Here:
    """A Session whose guest is this machine; ``instead`` runs other commands than it was asked to."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._open = folder, ExitStack()
        self._number = 0
        self.instead: dict[str, list[str]] = {}
        self.said: list[str] = []
        self.context = Context(server="https://127.0.0.1")

    @property
    def client(self) -> Here:
        return self

    def make_client(self) -> Here:
        return self

    @property
    def http(self) -> Any:
        return SimpleNamespace(endpoints=SimpleNamespace(are_several=False), leave_server=lambda: False)

    def verb(
        self, kind: str, name: str, verb: str, given: dict[str, Any], *, project: str | None = None
    ) -> dict[str, Any]:
        self._number += 1
        argv = given["argv"]
        argv = next((other for word, other in self.instead.items() if any(word in part for part in argv)), argv)
        self.context, ticket = self._open.enter_context(far_end(self._folder / f"far-{self._number}", argv))
        return ticket

    def notify(self, line: str) -> None:
        self.said.append(line)

    def get(self, path: str | Path, goal: str | Path) -> int:
        return cp._get(cast(Session, self), WEB, str(path), str(goal))

    def put(self, source: str | Path, path: str | Path) -> int:
        return cp._put(cast(Session, self), str(source), WEB, str(path))

    def close(self) -> None:
        self._open.close()


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Here]:
    here = Here(tmp_path)
    yield here
    here.close()


def make_folder(folder: Path) -> Path:
    (folder / "inner").mkdir(parents=True)
    (folder / "inner/note").write_text("note")
    (folder / "big").write_bytes(os.urandom(20 << 20))
    (folder / "run").write_text("#!/bin/sh\n")
    (folder / "run").chmod(0o755)
    (folder / "link").symlink_to("inner/note")
    (folder / "absolute").symlink_to("/etc/hostname")
    return folder


def test_a_folder_goes_there_and_back_with_large_files_and_links(here: Here, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "folder")
    assert here.put(folder, tmp_path / "there") == 0
    assert here.get(tmp_path / "there", tmp_path / "back") == 0
    done = subprocess.run(
        ["diff", "-r", "--no-dereference", str(folder), str(tmp_path / "back")], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert os.access(tmp_path / "back/run", os.X_OK)
    (tmp_path / "into").mkdir()
    assert here.get(tmp_path / "there/inner", tmp_path / "into") == 0  # into a folder that is there, under its own name
    assert (tmp_path / "into/inner/note").read_text() == "note"


def test_a_folder_is_not_copied_onto_a_file(here: Here, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(click.UsageError, match="is a file, and a folder is copied"):
        here.get(make_folder(tmp_path / "folder"), tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_file_goes_there_and_back(here: Here, tmp_path: Path) -> None:
    data = os.urandom(3_000_001)
    (tmp_path / "file").write_bytes(data)
    assert here.put(tmp_path / "file", tmp_path / "there") == 0
    (tmp_path / "into").mkdir()
    assert here.get(tmp_path / "there", tmp_path / "into") == 0
    assert [path.name for path in (tmp_path / "into").iterdir()] == ["there"]
    assert (tmp_path / "into/there").read_bytes() == data
    with pytest.raises(NotFound, match="no readable file"):
        here.get(tmp_path / "none", tmp_path / "into")


@pytest.mark.parametrize("mode", [0o600, 0o755, 0o444, 0o4755, 0o000])
def test_a_file_from_a_guest_has_its_mode_there_less_the_umask_and_one_that_is_here_keeps_its_own(
    here: Here, tmp_path: Path, mode: int
) -> None:
    (tmp_path / "file").write_text("#!/bin/sh\n")
    (tmp_path / "file").chmod(mode)
    former = os.umask(0o027)
    try:
        assert here.get(tmp_path / "file", tmp_path / "new") == 0
        (tmp_path / "own").write_text("older")
        (tmp_path / "own").chmod(0o640)
        assert here.get(tmp_path / "file", tmp_path / "own") == 0
    finally:
        os.umask(former)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == mode & 0o750
    assert stat.S_IMODE((tmp_path / "own").stat().st_mode) == 0o640
    assert (tmp_path / "own").read_text() == (tmp_path / "new").read_text() == "#!/bin/sh\n"


def test_a_file_whose_mode_the_guest_does_not_tell_is_its_new_owner_s_alone(here: Here, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("secret")
    here.instead["echo folder"] = ["echo", "file 9; rm -rf /"]
    assert here.get(tmp_path / "file", tmp_path / "new") == 0
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o600


def test_while_a_file_goes_to_a_guest_nobody_else_there_reads_its_part(here: Here, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("secret")
    with (tmp_path / "file").open("rb") as file:
        argv = ["sh", "-c", cp._PUT.replace("chmod", ": chmod"), str(tmp_path / "to"), "file", "part", "644"]
        assert cp._send(cast(Session, here), WEB, argv, file.fileno()) == 0
    assert stat.S_IMODE((tmp_path / ".part.weft-part").stat().st_mode) == 0o600


@pytest.mark.parametrize("name", ["日" * 80 + "1", "x" * 255])
def test_a_file_with_the_longest_name_goes_both_ways(here: Here, tmp_path: Path, name: str) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / name).write_text("a")
    assert here.put(tmp_path / name, f"{tmp_path}/there/") == 0
    (tmp_path / "back").mkdir()
    assert here.get(tmp_path / "there" / name, tmp_path / "back") == 0
    assert [one.name for one in (tmp_path / "back").iterdir()] == [name]


def test_a_file_that_was_not_sent_whole_does_not_get_its_name(here: Here, tmp_path: Path) -> None:
    """The far end can't tell a lost connection from the end of the file."""
    there = tmp_path / "there"
    there.write_text("as it was")
    ours, theirs = os.pipe()
    with os.fdopen(theirs, "wb") as typed, os.fdopen(ours, "rb") as reading:
        typed.write(b"half")
        typed.flush()
        interrupt = threading.Timer(0.5, signal.raise_signal, [signal.SIGINT])
        interrupt.start()
        with pytest.raises(KeyboardInterrupt):
            cp._put_file(cast(Session, here), WEB, str(there), "stdin", 0o644, reading.fileno())
    here.close()  # once the far end has ended
    assert there.read_text() == "as it was"


def test_a_part_is_written_through_no_link_that_a_guest_may_have_left(here: Here, tmp_path: Path) -> None:
    into, victim = tmp_path / "into", tmp_path / "victim"
    into.mkdir()
    victim.write_text("mine")
    (into / ".part.weft-part").symlink_to(victim)
    (tmp_path / "file").write_text("new")
    with (tmp_path / "file").open("rb") as file:
        argv = ["sh", "-c", cp._PUT, str(into), "file", "part", "644"]
        assert cp._send(cast(Session, here), WEB, argv, file.fileno()) != 0
    assert victim.read_text() == "mine" and list(into.iterdir()) == []


def test_a_file_is_written_through_no_link_that_a_guest_may_have_left(here: Here, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("from the guest")
    into, victim = tmp_path / "into", tmp_path / "victim"
    into.mkdir()
    victim.write_text("mine")
    for name in ("notes", "notes.weft-part"):
        (into / name).symlink_to(victim)
    assert here.get(tmp_path / "notes", into) == 0
    assert (victim.read_text(), (into / "notes").read_text()) == ("mine", "from the guest")
    (into / "folder").symlink_to(tmp_path)
    (tmp_path / "guest/folder").mkdir(parents=True)
    with pytest.raises(InvalidInput, match="is a link"):
        here.get(tmp_path / "guest/folder", into)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root could take them over")
def test_root_takes_over_neither_setuid_bits_nor_owners_nor_devices(here: Here, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    (there / "suid").write_text("z")
    os.chown(there / "suid", 4321, 4321)
    (there / "suid").chmod(0o6777)
    os.mknod(there / "disk", 0o660 | stat.S_IFBLK, os.makedev(254, 0))
    os.mkfifo(there / "pipe")
    assert here.get(there, tmp_path / "back") == 0
    assert [path.name for path in (tmp_path / "back").iterdir()] == ["suid"]
    found = (tmp_path / "back/suid").stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o7000) == (0, 0, 0)
    assert here.said == ["left out 2 devices and pipes, which weft never copies from a guest"]


@pytest.mark.parametrize("where", ["echo folder", "tar -c"])
@pytest.mark.parametrize("to", ["", " >&2"])
def test_a_guest_that_prints_without_end_is_not_listened_to_for_ever(
    here: Here, tmp_path: Path, where: str, to: str, capfd: pytest.CaptureFixture[str]
) -> None:
    here.instead[where] = ["sh", "-c", f"exec yes '\033[31mflood'{to}"]
    (tmp_path / "there").mkdir()
    with pytest.raises(DriverFailed, match=r"printed far more than expected|no tar archive"):
        here.get(tmp_path / "there", tmp_path / "back")
    said = capfd.readouterr().err
    assert len(said) < 1 << 17 and "\033" not in said


def test_an_archive_that_was_cut_is_an_error(here: Here, tmp_path: Path) -> None:
    here.instead["tar -c"] = ["sh", "-c", f"tar -c -C {tmp_path} there | head -c 700"]
    (tmp_path / "there").mkdir()
    with pytest.raises(DriverFailed, match="was cut"):
        here.get(tmp_path / "there", tmp_path / "back")
