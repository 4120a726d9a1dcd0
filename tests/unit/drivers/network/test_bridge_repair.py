"""What is mended on a node when one of its networks can't be: all the others, and each that can't is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from weft.contracts.driver.host import Capacity, Host
from weft.contracts.driver.network import Segment
from weft.drivers.network.bridge import kernel
from weft.drivers.network.bridge.driver import BridgeNetwork
from weft.objects.errors import DriverFailed


class Broken(BridgeNetwork):
    """A node whose kernel takes nothing for some networks."""

    def __init__(self, folder: Path, *names: str) -> None:
        where = str(folder)
        super().__init__(Host("n1", "uid", where, where, "w", "10.1.0.1", "eth0", "weft/n1", Capacity(1, 1, 1)))
        for number, name in enumerate(names):
            id_ = f"segment{number:03}"
            self._applied[id_] = Segment(id_, name, number, "10.0.0.0/24", "10.0.0.1", 1450, "weft", True, [])

    async def _apply_once(self, segment: Segment, *found: object) -> None:
        if segment.name.startswith("bad"):
            raise DriverFailed(f"no bridge for {segment.name}")
        mended = found[-1]
        assert isinstance(mended, list)
        mended.append("DHCP and DNS")


async def test_networks_after_one_that_cannot_be_mended_are_and_each_failure_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def inspect_node() -> tuple[dict[str, kernel.Link], list[kernel.FdbEntry]]:
        return {}, []

    monkeypatch.setattr(kernel, "inspect_node", inspect_node)
    node = Broken(tmp_path, "bad-1", "blue", "bad-2", "green")
    assert await node.heal() == ["DHCP and DNS of network blue", "DHCP and DNS of network green"]
    assert [record.getMessage() for record in caplog.records] == [
        f"network {name} can't be repaired now: no bridge for {name}" for name in ("bad-1", "bad-2")
    ]
