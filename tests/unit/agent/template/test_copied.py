"""A machine that goes on from copied memory counts as ready once it has its own addresses, and its log says where it is from."""

from __future__ import annotations

import subprocess
from pathlib import Path

import msgspec
from tests.unit.agent.template.test_library import NIC, SPEC

from weft.agent.template.copied import note_copy, write_wait
from weft.contracts.driver.runtime import BootDisk, GuestDisk, GuestNic, GuestPlan

PLAN = GuestPlan(
    id="web", uid="u", name="web", incarnation=1, machine="q35", cpu=1.0, vcpus=1, memory_bytes=1 << 28,
    boot=BootDisk("bios"), disks=[GuestDisk("/d", "qcow2", "root")], nics=[GuestNic("tap0", NIC.mac, 1450)],
)  # fmt: skip


def run_wait(folder: Path, *, address: str, route: str) -> int:
    """How often it looked at an ``ip`` that says this, and from the third look on what it waits for."""
    looks = folder / "looks"
    looks.write_text("")
    (folder / "ip").write_text(
        f"""#!/bin/sh
echo >>{looks}
if [ $(wc -l <{looks}) -gt 5 ]; then address={NIC.address} route=default; else address={address} route={route}; fi
[ "$1" = route ] && echo "$route via 10.0.0.1" || echo "2: eth0    inet $address/24 scope global"
"""
    )
    (folder / "ip").chmod(0o755)
    script = "set -e\n" + write_wait(SPEC.nics, PLAN)
    subprocess.run(["/bin/sh", "-s"], input=script.encode(), env={"PATH": f"{folder}:/usr/bin:/bin"}, check=True)
    return len(looks.read_text())


def test_it_waits_for_its_own_address_and_for_a_route(tmp_path: Path) -> None:
    assert run_wait(tmp_path, address=NIC.address, route="default") == 2
    assert run_wait(tmp_path, address=f"{NIC.address}1", route="default") > 5, "an address that only begins alike"
    assert run_wait(tmp_path, address=NIC.address, route="10.0.0.0/24") > 5


def test_a_machine_whose_network_is_plugged_in_later_does_not_wait_for_it() -> None:
    assert write_wait(SPEC.nics, msgspec.structs.replace(PLAN, nics=[])) == ""


def test_the_log_says_what_it_goes_on_from() -> None:
    said = note_copy(SPEC.workload, "the booted machine of image tiny", 1_790_000_000.0)
    assert said.startswith(
        "weft: vm/web did not boot, it goes on from the booted machine of image tiny, made at 2026-09-"
    )
    assert note_copy(SPEC.workload, "the memory of snapshot/s1", 0.0).endswith("snapshot/s1")
