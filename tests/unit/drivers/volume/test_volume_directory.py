"""The directory volume driver keeps the contract's promises with real files, and is never caught half-way."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.conformance.encryption import EncryptionPromises, key
from tests.conformance.layers import LayerPromises
from tests.conformance.volume import BASE_BYTES, ID, MIB, VolumePromises

from weft.contracts.driver.host import Capacity, Host
from weft.contracts.driver.volume import VolumeDriver
from weft.drivers.volume.directory.driver import DirectoryVolumes
from weft.objects.errors import DriverFailed, InvalidInput


def make_host(state: Path) -> Host:
    return Host("n1", "node-1", str(state), str(state), "wtst", "10.99.0.1", "lo", "weft/t", Capacity(1, 1, 1))


@pytest.fixture
def driver(tmp_path: Path) -> DirectoryVolumes:
    return DirectoryVolumes(make_host(tmp_path))


__all__ = ["key"]


class TestDirectory(VolumePromises, LayerPromises, EncryptionPromises):
    @pytest.fixture
    def reborn(self, tmp_path: Path) -> Callable[[], VolumeDriver]:
        return lambda: DirectoryVolumes(make_host(tmp_path))

    @pytest.fixture
    def base(self, tmp_path: Path) -> str:
        path = tmp_path / "base"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), str(BASE_BYTES)], check=True)
        return str(path)


@contextlib.contextmanager
def removals() -> Iterator[list[tuple[str, bool]]]:
    """The files that are removed meanwhile, and whether this thread did it, as the interpreter tells its auditors."""
    found: list[tuple[str, bool]] = []
    here, listening = threading.get_ident(), True

    def hear(event: str, args: tuple[object, ...]) -> None:  # can't be taken back, so it falls silent
        if listening and event == "os.remove":
            found.append((str(args[0]), threading.get_ident() == here))

    sys.addaudithook(hear)
    try:
        yield found
    finally:
        listening = False


async def test_the_agent_goes_on_while_a_file_system_takes_its_time_to_remove_a_disk(driver: DirectoryVolumes) -> None:
    facts = await driver.ensure(ID, size_bytes=8 * MIB)
    with removals() as found:
        await driver.remove(ID)
    assert found == [(facts.path, False)]


async def test_a_clone_reads_what_its_base_holds(driver: DirectoryVolumes, tmp_path: Path) -> None:
    base = tmp_path / "base.raw"
    base.write_bytes(b"weft" * 1024 * 256)
    facts = await driver.ensure(ID, size_bytes=0, base=str(base), base_format="raw")
    out = tmp_path / "out.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", facts.path, str(out)], check=True)
    assert out.read_bytes() == base.read_bytes()


async def test_a_volume_that_a_guest_holds_open_can_still_be_looked_at(driver: DirectoryVolumes) -> None:
    facts = await driver.ensure(ID, size_bytes=8 * MIB)
    holder = subprocess.Popen(
        ["qemu-io", "-f", "qcow2", facts.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdin is not None and holder.stdout is not None
        holder.stdin.write("write 0 65536\n")
        holder.stdin.flush()
        assert "wrote" in holder.stdout.readline()
        found = await driver.inspect(ID)
        assert found is not None and found.size_bytes == 8 * MIB
        with pytest.raises(DriverFailed, match="lock"):
            await driver.grow(ID, 16 * MIB)
    finally:
        holder.kill()
        holder.wait()


async def test_what_a_killed_driver_left_half_made_is_swept_and_never_listed(tmp_path: Path) -> None:
    (tmp_path / "volumes").mkdir()
    half = tmp_path / "volumes" / f".making-{ID}.qcow2"
    half.write_bytes(b"half")
    driver = DirectoryVolumes(make_host(tmp_path))
    assert (await driver.list(), half.exists()) == ([], False)


async def test_a_failed_making_names_the_step_and_leaves_nothing(driver: DirectoryVolumes, tmp_path: Path) -> None:
    base = tmp_path / "not.qcow2"
    base.write_bytes(b"no image")
    with pytest.raises(DriverFailed) as caught:
        await driver.ensure(ID, size_bytes=0, base=str(base))
    assert caught.value.details["step"] == "disk"
    assert list((tmp_path / "volumes").iterdir()) == []


@pytest.mark.parametrize("id", ["", "../x", ".hidden", "a/b"])
async def test_an_id_that_would_leave_the_folder_is_refused(driver: DirectoryVolumes, id: str) -> None:
    with pytest.raises(InvalidInput):
        await driver.ensure(id, size_bytes=MIB)


async def test_a_header_that_names_a_file_of_the_host_for_its_data_does_not_get_it_resized(
    driver: DirectoryVolumes, tmp_path: Path
) -> None:
    facts = await driver.ensure(ID, size_bytes=MIB)
    secret = tmp_path / "secret"
    options = f"data_file={secret},data_file_raw=on"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, facts.path, str(MIB)], check=True)
    before = secret.stat().st_size
    with pytest.raises(DriverFailed, match="refers to another file"):
        await driver.grow(ID, 2 * MIB)
    assert secret.stat().st_size == before
