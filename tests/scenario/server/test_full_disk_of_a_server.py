"""Servers whose state folder is on a disk that fills up: the others go on, the reason is named, and free space is enough."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from tests.conformance.store.etcd_server import PROGRAM
from tests.scenario.server.servers_lab import WEFT, fabric_in, read_servers, tried
from tests.scenario.server.test_server_log import until

from weft.client.api import Client
from weft.objects.errors import StoreUnavailable

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(PROGRAM is None, reason="etcd is not installed (apt-get install etcd-server)"),
]


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Callable[[], Callable[[], None]]]:
    """A disk at ``folder``. Gives what fills it, which gives what frees it. An etcd that starts frees some of its log's space, and
    takes it again: so tests fill it more than once."""
    folder.mkdir(mode=0o700, parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "none", str(folder)], check=True)
    ballast = folder / "ballast"

    def fill() -> Callable[[], None]:
        with ballast.open("ab", buffering=0) as file:
            for size in (1 << 20, 4096):
                with suppress(OSError):
                    while file.write(bytes(size)):
                        pass
        return ballast.unlink

    try:
        yield fill
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def write_large(client: Client, number: int) -> bool:
    values = {"a": f"{number:06}" + "x" * 60_000}
    return bool(client.put({"kind": "secret", "name": "large", "spec": {"values": values}}))


def doctor(context: Path) -> str:
    return subprocess.run([*WEFT, "doctor", "--context", str(context)], capture_output=True, text=True).stdout


@pytest.mark.long
def test_one_server_with_a_full_disk_leaves_the_others_alone_and_comes_back(tmp_path: Path) -> None:
    with small_disk(tmp_path / "s2" / "etcd", "600M") as fill, fabric_in(tmp_path) as fabric:
        fabric.begin()
        fabric.join(2)
        fabric.join(3)
        client, context = fabric.follow(), tmp_path / "s1" / "context.json"

        def is_away() -> bool:
            fill()
            assert until(lambda: tried(lambda: write_large(client, 1)), 20)
            return read_servers(client)["s2"][0] == "NotReady"

        until(is_away, 60)
        broken = tmp_path / "s2" / "etcd" / "data" / "member" / "wal" / "0.wal.broken"
        broken.touch()
        until(lambda: fill() and "server s2: its disk has only" in doctor(context), 60)
        fill()()
        until(lambda: read_servers(client)["s2"][0] == "Ready", 60)
        until(lambda: "its disk has only" not in doctor(context), 30)
        assert not broken.exists()
        assert tried(lambda: write_large(fabric.client("s2"), 1))


@pytest.mark.long
def test_a_server_whose_own_etcd_has_a_full_disk_names_it_and_goes_on_once_there_is_space(tmp_path: Path) -> None:
    context = tmp_path / "s1" / "context.json"
    with small_disk(tmp_path / "s1" / "etcd", "600M") as fill, fabric_in(tmp_path, "etcd") as fabric:
        fabric.begin()
        client, server = fabric.client("s1"), fabric.servers["s1"]
        with pytest.raises(StoreUnavailable):
            for number in range(200):
                fill()
                write_large(client, number)
        until(lambda: fill() and "its disk has only" in doctor(context), 60)
        fill()()
        until(lambda: tried(lambda: write_large(client, 1)), 60)
        fill()
        server.kill()
        broken = tmp_path / "s1" / "etcd" / "data" / "member" / "wal" / "0.wal.broken"
        broken.touch()
        server.start()
        until(lambda: fill() and server.read_log().count("no space left on device") > 2, 60)
        fill()()
        until(lambda: tried(lambda: write_large(client, 1)), 60)
        assert not broken.exists()


def test_a_server_whose_whole_folder_is_on_a_full_disk_names_it_and_goes_on_once_there_is_space(tmp_path: Path) -> None:
    with small_disk(tmp_path / "s1", "600M") as fill, fabric_in(tmp_path, "etcd") as fabric:
        fabric.begin()
        client, server = fabric.client("s1"), fabric.servers["s1"]
        with pytest.raises(StoreUnavailable) as refused:
            for number in range(200):
                fill()
                write_large(client, number)
        assert "free disk space" in (refused.value.hint or "")  # the audit log may be the first to notice, or etcd
        until(lambda: fill() and "its disk has only" in doctor(tmp_path / "s1" / "context.json"), 60)
        server.kill()
        server.start()
        until(lambda: "no space left on device" in server.read_log().lower(), 60)  # and it doesn't end
        assert server.process.poll() is None
        fill()()
        until(lambda: tried(lambda: write_large(client, 1)), 60)
