"""Fixtures for tests with real guests."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from guest_lab import GuestLab, unpack_tiny

from weft.drivers.runtime.qemu.driver import QemuDriver


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the unpacked tiny bundle."""
    if os.geteuid() != 0 or shutil.which("qemu-system-x86_64") is None:
        pytest.skip("needs root and QEMU")
    return unpack_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def lab(tiny: Path) -> Iterator[GuestLab]:
    """A node of real guests for all tests of a file."""
    lab = GuestLab(tiny)
    try:
        yield lab
    finally:
        lab.close()


@pytest.fixture
async def driver(lab: GuestLab) -> AsyncIterator[QemuDriver]:
    """One that knows the guests there are. All drivers end with the test that had them: a guest's lines serve one at a time."""
    driver = lab.driver()
    await driver.recover()
    yield driver
    await lab.close_drivers()


@pytest.fixture(scope="session")
def verifier(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The program that keeps writing and notices what was lost: see verifier.c."""
    return compile_for_guests("verifier", tmp_path_factory)


@pytest.fixture(scope="session")
def counter(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The program that notices when its disks and its memory aren't of one instant: see counter.c."""
    return compile_for_guests("counter", tmp_path_factory)


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The program that takes the guest agent's place and abuses it: see hostile.c."""
    return compile_for_guests("hostile", tmp_path_factory)


def compile_for_guests(name: str, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    program = tmp_path_factory.mktemp(name) / name
    source = Path(__file__).with_name(f"{name}.c")
    subprocess.run(["gcc", "-O2", "-static", "-s", "-o", str(program), str(source)], check=True)
    return program.read_bytes()
