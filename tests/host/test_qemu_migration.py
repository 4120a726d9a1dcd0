"""Guests move between two QEMU drivers while they write, and whoever dies on the way leaves exactly one, whole."""

from __future__ import annotations

import asyncio
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from guest_lab import GuestLab

from weft.contracts.runtime import GuestPlan

pytest.register_assert_rewrite("tests.conformance.runtime_contract", "tests.conformance.runtime_moves")

from tests.conformance.runtime_contract import run
from tests.conformance.runtime_moves import MovePromises, Mover

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def other_lab(tiny: Path) -> Iterator[GuestLab]:
    lab = GuestLab(tiny)
    yield lab
    lab.close()


class TestQemuMoves(MovePromises):
    """The guest writes most of the memory it has free, and its disk, and looks whether all is there still."""

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def verifier(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        program = tmp_path_factory.mktemp("verifier") / "verifier"
        source = Path(__file__).with_name("verifier.c")
        subprocess.run(["gcc", "-O2", "-static", "-s", "-o", str(program), str(source)], check=True)
        cls.program = program.read_bytes()

    program = b""

    async def prepare(self, driver: Mover, plan: GuestPlan) -> None:
        await run(driver, plan.id, "sh", "-c", "cat > /root/verifier; chmod +x /root/verifier", stdin=self.program)
        start = "/root/verifier 24 20000 /root/counter /dev/shm/verdict >/dev/null 2>&1 &"
        await run(driver, plan.id, "sh", "-c", start)

    async def look(self, driver: Mover, plan: GuestPlan, *, after: int = 0) -> int:
        async with asyncio.timeout(60):
            while True:
                said = (await run(driver, plan.id, "cat", "/dev/shm/verdict"))[0].decode()
                if found := re.match(r"rounds=(\d+) bad=(\d+)", said):
                    assert found[2] == "0", said
                    if int(found[1]) > after:
                        return int(found[1])
                await asyncio.sleep(0.1)
