"""What a process can still do once it is confined as that of the models is."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from weft.drivers.model import confinement
from weft.drivers.model.confinement import confine


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process of tests may be larger by itself than the bound."""
    own = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    monkeypatch.setattr(confinement, "MEMORY_BYTES", own + confinement.MEMORY_BYTES)


@pytest.mark.usefixtures("memory")
def test_it_reads_its_file_and_opens_no_other_even_after_it_has_closed_one(tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(b"a model")
    server = socket.create_server(("127.0.0.1", 0))
    ours, theirs = socket.socketpair()
    parent, given = os.getpid(), os.open(tmp_path / "model", os.O_RDONLY)
    child = os.fork()
    if not child:
        try:
            (file,) = confine(parent, theirs.fileno(), [given])
            os.write(0, os.pread(file, 100, 0) + b"\n")
            os.close(1)
            os.close(file)
            tries: list[tuple[str, Callable[[], object]]] = [
                ("a file", lambda: os.open("/etc/passwd", os.O_RDONLY)),
                ("a socket", lambda: socket.create_connection(server.getsockname(), 5)),
                ("a socket in the file system", lambda: socket.socket(socket.AF_UNIX)),
                ("a copy", lambda: os.dup(0)),
                ("a process", os.fork),
            ]
            for what, attempt in tries:
                try:
                    attempt()
                    os.write(0, f"{what}\n".encode())
                except OSError:
                    continue
        finally:
            os._exit(0)
    theirs.close()
    os.close(given)
    with ours, server, ours.makefile("rb") as said:
        lines = said.read().splitlines()
    os.waitpid(child, 0)
    # Root's processes have no bound of their own: it is the user that is refused to start one.
    assert lines == [b"a model"] or (os.geteuid() != 0 and lines == [b"a model", b"a process"])
