"""What is mended on a node when one of its networks can't be: all the others, and each that can't is told."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from weft.contracts.driver.host import Capacity, Host
from weft.contracts.driver.network import Segment
from weft.drivers.network.bridge import kernel
from weft.drivers.network.bridge.driver import BridgeNetwork
from weft.objects.errors import DriverFailed


class Broken(BridgeNetwork):
    """A node whose kernel takes nothing for some networks."""

    is_well = False

    def __init__(self, folder: Path, *names: str) -> None:
        where = str(folder)
        super().__init__(Host("n1", "uid", where, where, "w", "10.1.0.1", "eth0", "weft/n1", Capacity(1, 1, 1)))
        for number, name in enumerate(names):
            id_ = f"segment{number:03}"
            self._applied[id_] = Segment(id_, name, number + 1, "10.0.0.0/24", "10.0.0.1", 1450, "weft", True, [])

    def _segment_ids(self, links: object) -> list[str]:
        return ["segment000"]

    async def _apply_once(self, segment: Segment, *found: object) -> None:
        if segment.name.startswith("bad") and not self.is_well:
            raise DriverFailed(f"no bridge for {segment.name}")
        mended = found[-1]
        assert isinstance(mended, list)
        mended.append("DHCP and DNS")


@pytest.fixture(autouse=True)
def empty_node(monkeypatch: pytest.MonkeyPatch) -> None:
    async def inspect_node() -> tuple[dict[str, kernel.Link], list[kernel.FdbEntry]]:
        return {}, []

    monkeypatch.setattr(kernel, "inspect_node", inspect_node)


async def test_networks_after_one_that_cannot_be_mended_are_and_each_failure_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    node = Broken(tmp_path, "bad-1", "blue", "bad-2", "green")
    assert await node.heal() == ["DHCP and DNS of network blue", "DHCP and DNS of network green"]
    assert [record.getMessage() for record in caplog.records] == [
        f"network {name} can't be repaired now: no bridge for {name}" for name in ("bad-1", "bad-2")
    ]


async def test_a_change_that_failed_is_made_later_and_is_no_damage(tmp_path: Path) -> None:
    node = Broken(tmp_path, "bad")
    changed = msgspec.structs.replace(node._applied["segment000"], mtu=1400)
    with pytest.raises(DriverFailed):
        await node.ensure_segment(changed)
    node._keep(changed)  # as the change begins with
    del node._applied["segment000"]
    assert await node._heal_all() == ([], True, {})
    node.is_well = True
    assert await node._heal_all() == ([], False, {}), "it is made, and nothing was wrong before"
    assert node._applied["segment000"] == changed
    assert (await node._heal_all())[0] == ["DHCP and DNS of network bad"]
