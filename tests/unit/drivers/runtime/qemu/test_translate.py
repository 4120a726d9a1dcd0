"""From plan to command line."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from weft.contracts.driver.migration import MigrationSettings
from weft.contracts.driver.runtime import BootDisk, BootKernel, GuestDisk, GuestNic, GuestPlan
from weft.contracts.driver.volume import RbdImage
from weft.drivers.runtime.qemu.devices.inherited_fds import plan_inherited_fds
from weft.drivers.runtime.qemu.machine_shape import plan_frame
from weft.drivers.runtime.qemu.start import RBD_HEADROOM_BYTES, choose_limits
from weft.drivers.runtime.qemu.translate import GuestPaths, QemuHostFacts, check_plan, translate_guest
from weft.objects.errors import InvalidInput

FACTS = QemuHostFacts("/usr/bin/qemu-system-x86_64", "tcg", (10, 0, 2), 2_500_000, (1000, 10))
KVM = msgspec.structs.replace(FACTS, accelerator="kvm")
PATHS = GuestPaths(run=Path("/run/w/abcdefghij"), state=Path("/var/lib/w/guests/abcdefghij"))
PLAN = GuestPlan(
    id="abcdefghij",
    uid="7d1f3a52-0f0c-4d0e-9f0a-0123456789ab",
    name="web",
    incarnation=1,
    machine="q35",
    cpu=0.5,
    vcpus=2,
    memory_bytes=256 << 20,
    boot=BootKernel("/i/kernel", "/i/initrd", "quiet panic=-1"),
    disks=[
        GuestDisk("/d/root.qcow2", "qcow2", "root", base="/i/disk"),
        GuestDisk("/d/a,b.raw", "raw", "data", read_only=True),
    ],
    nics=[GuestNic("wt0", "52:54:00:00:00:01", 1450), GuestNic("wt1", "52:54:00:00:00:02", 1400)],
    hostname="web-1",
)


def translate(plan: GuestPlan, facts: QemuHostFacts = FACTS, *, incoming: bool = False) -> list[str]:
    check_plan(plan, PATHS)
    return translate_guest(plan, plan_frame(plan, 4, 1 << 30), PATHS, facts, number(plan), incoming=incoming)


def number(plan: GuestPlan) -> dict[str, int]:
    """Descriptors from 10 on."""
    return {thing.name: 10 + index for index, thing in enumerate(plan_inherited_fds(plan, PATHS))}


def changed(**changes: object) -> GuestPlan:
    return msgspec.structs.replace(PLAN, **changes)


def values(words: list[str], option: str) -> list[str]:
    return [words[index + 1] for index, word in enumerate(words) if word == option]


def device(words: list[str], name: str) -> list[dict[str, str]]:
    found = [value.split(",") for value in values(words, "-device") if value.split(",")[0] == name]
    return [dict(part.split("=", 1) for part in parts[1:]) for parts in found]


def test_the_process_can_be_told_by_name_and_uid() -> None:
    words = translate(PLAN, FACTS)
    assert words[0] == FACTS.program and (values(words, "-name"), values(words, "-uuid")) == (["guest=web"], [PLAN.uid])
    assert values(words, "-pidfile") == [str(PATHS.pid)]


def test_disks_keep_serial_and_mode() -> None:
    words = translate(PLAN, FACTS)
    root, data = (json.loads(value) for value in values(words, "-blockdev"))
    assert (root["driver"], root["node-name"], root["discard"], root["read-only"]) == (
        "qcow2",
        "disk-root",
        "unmap",
        False,
    )
    assert (data["driver"], data["read-only"]) == ("raw", True)
    assert [blk["serial"] for blk in device(words, "virtio-blk-pci")] == ["root", "data"]


def test_disks_are_handed_over_open_and_their_headers_are_not_asked() -> None:
    words, numbers = translate(PLAN), number(PLAN)
    root, data = (json.loads(value) for value in values(words, "-blockdev"))
    assert root["file"]["filename"] == f"/dev/fdset/{numbers['disk root']}"
    assert root["backing"]["file"]["filename"] == f"/dev/fdset/{numbers['base of root']}"
    assert root["backing"]["backing"] is None and root["backing"]["read-only"]
    assert "backing" not in data
    sets = {word.partition("set=")[2] for word in values(words, "-add-fd")}
    assert {str(numbers[name]) for name in ("disk root", "base of root", "disk data", "console-log")} == sets
    assert not any("/d/" in word or "/i/" in word for word in words)


def test_a_volume_without_a_base_has_none_whatever_its_header_says() -> None:
    words = translate(changed(disks=[GuestDisk("/d/v.qcow2", "qcow2", "v")]))
    (volume,) = (json.loads(value) for value in values(words, "-blockdev"))
    assert volume["backing"] is None


def test_an_image_in_ceph_is_opened_with_a_configuration_that_is_handed_over() -> None:
    image = RbdImage("weft", "weft-disk-a", "/etc/ceph/ceph.conf", "weft")
    plan = changed(disks=[GuestDisk("rbd:weft/weft-disk-a", "raw", "root", rbd=image)])
    [thing] = [one for one in plan_inherited_fds(plan, PATHS) if one.kind == "ceph"]
    assert (thing.where, thing.user) == ("/etc/ceph/ceph.conf", "weft")
    words, descriptor = translate(plan), number(plan)[thing.name]
    [node] = [json.loads(value) for value in values(words, "-blockdev")]
    assert (node["driver"], node["pool"], node["image"], node["user"]) == ("rbd", "weft", "weft-disk-a", "weft")
    assert node["conf"] == f"/proc/self/fd/{descriptor}"
    assert not [value for value in values(words, "-add-fd") if f"fd={descriptor}," in value], "QEMU would close it"


def test_a_guest_on_images_in_ceph_may_hold_their_clients_memory() -> None:
    image = RbdImage("weft", "a", "/etc/ceph/ceph.conf", "weft")
    disks = [*PLAN.disks, GuestDisk("rbd:weft/a", "raw", "more", rbd=image)]
    more, plain = choose_limits(changed(disks=disks), KVM).memory_bytes, choose_limits(PLAN, KVM).memory_bytes
    assert more is not None and plain is not None and more - plain == RBD_HEADROOM_BYTES


def test_nics_keep_tap_mac_and_mtu() -> None:
    words = translate(PLAN, FACTS)
    assert values(words, "-netdev")[1] == f"tap,id=net-525400000002,fd={number(PLAN)['tap wt1']}"
    assert [(nic["mac"], nic["host_mtu"]) for nic in device(words, "virtio-net-pci")] == [
        ("52:54:00:00:00:01", "1450"),
        ("52:54:00:00:00:02", "1400"),
    ]


def test_every_device_has_a_place_of_its_own_that_others_do_not_move() -> None:
    for machine in ("q35", "microvm"):
        words = translate(changed(machine=machine), FACTS)
        places = [
            (part, value.split(",")[0])
            for value in values(words, "-device")
            for part in value.split(",")
            if part.startswith(("addr=", "bus=virtio-mmio"))
        ]
        assert len({place for place, _ in places}) == len(places) >= 7
        fewer = translate(changed(machine=machine, disks=PLAN.disks[:1]), FACTS)
        kind = "virtio-net-pci" if machine == "q35" else "virtio-net-device"
        assert device(fewer, kind) == device(words, kind)


def test_microvm_has_no_pci() -> None:
    words = translate(changed(machine="microvm"), FACTS)
    assert not any("pci" in word for word in values(words, "-device"))
    assert values(words, "-machine")[0].startswith("microvm,acpi=on")


def test_an_emulated_kernel_is_told_what_it_cannot_measure_and_a_real_one_is_left_alone() -> None:
    (emulated,) = values(translate(PLAN, FACTS), "-append")
    assert {"tsc_early_khz=2500000", "mitigations=off", "weft.hostname=web-1", "quiet"} <= set(emulated.split())
    words = translate(changed(machine="microvm"), KVM)
    assert values(words, "-append") == ["console=ttyS0 quiet panic=-1 pci=off weft.hostname=web-1"]
    assert values(words, "-cpu") == ["host"]


def test_a_disk_image_boots_through_firmware() -> None:
    words = translate(changed(boot=BootDisk()), FACTS)
    assert "-kernel" not in words and "-bios" not in words
    assert [blk["bootindex"] for blk in device(words, "virtio-blk-pci")] == ["1", "2"]
    uefi = msgspec.structs.replace(FACTS, uefi_code="/fw/code", uefi_vars="/fw/vars")
    words = translate(changed(boot=BootDisk("uefi")), uefi)
    assert "pflash0=uefi-code,pflash1=uefi-vars" in values(words, "-machine")


def test_a_cd_boots_before_the_disks_and_a_screen_has_a_keyboard() -> None:
    iso = GuestDisk("/cd.iso", "raw", "iso", read_only=True, cdrom=True)
    words = translate(changed(boot=BootDisk(), disks=[*PLAN.disks, iso], screen=True), FACTS)
    (drive,) = device(words, "scsi-cd")
    assert drive["bootindex"] == "0" and device(words, "virtio-scsi-pci")
    assert device(words, "VGA") and values(words, "-vnc") == [f"unix:{PATHS.screen}"]
    assert "i8042=on" in values(words, "-machine")[0]
    assert "-vnc" not in translate(PLAN, FACTS)


def test_an_image_that_says_nothing_of_agents_gets_a_port_for_qemus_own() -> None:
    def ports(**changes: object) -> list[str]:
        words = translate(changed(**changes), FACTS)
        return [word.partition("name=")[2].partition(",")[0] for word in words if word.startswith("virtserialport")]

    assert ports(has_agent=False) == ["org.qemu.guest_agent.0"]
    assert ports() == ["weft.agent.0"]
    assert ports(qemu_agent=True) == ["weft.agent.0", "org.qemu.guest_agent.0"]


def test_a_resumed_guest_has_the_command_line_it_was_saved_with() -> None:
    words = translate(PLAN, FACTS)
    assert translate(PLAN, FACTS, incoming=True) == [*words, "-incoming", "defer", "-S"]


def test_devices_of_the_host_each_get_a_port_and_firmware_that_gives_them_addresses() -> None:
    words = translate(changed(devices=["0000:3b:00.0", "0000:86:00.0"]))
    assert [found["host"] for found in device(words, "vfio-pci")] == ["0000:3b:00.0", "0000:86:00.0"]
    ports = {port["id"]: port["addr"] for port in device(words, "pcie-root-port")}
    assert [ports[found["bus"]] for found in device(words, "vfio-pci")] == ["0x17.0", "0x17.1"]
    assert "-bios" not in words


def test_the_memory_a_guest_boots_with_is_the_first_of_its_blocks() -> None:
    """QEMU 10.0 under TCG forgets in all other blocks what is written while the guest moves: it arrived broken."""
    objects = [word for word in translate(PLAN, FACTS) if word.startswith("memory-backend")]
    assert [word.split(",")[1] for word in objects if ",id=" in word] == ["id=ram", "id=vmem0"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"machine": "microvm", "boot": BootDisk()}, "microvm boots a kernel"),
        ({"boot": BootDisk("uefi")}, "no UEFI firmware"),
        ({"disks": [GuestDisk("/d", "raw", f"d{n}") for n in range(19)]}, "at most 18 disks"),
        ({"disks": [GuestDisk("/d", "raw", "twice"), GuestDisk("/e", "raw", "twice")]}, "serials must differ"),
        ({"disks": [GuestDisk("/d", "raw", "with,comma")]}, "serials must differ"),
        ({"devices": [f"0000:{bus:02x}:00.0" for bus in range(9)]}, "at most 8"),
        ({"devices": ["0000:3b:00.0"], "machine": "microvm"}, "only machine q35 takes GPUs"),
    ],
)
def test_what_qemu_could_not_run_is_refused(changes: dict[str, object], says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        translate(changed(**changes), FACTS)


def test_a_run_folder_too_deep_for_sockets_is_refused() -> None:
    deep = GuestPaths(run=Path("/" + "x" * 100), state=PATHS.state)
    with pytest.raises(InvalidInput, match="107 bytes"):
        check_plan(PLAN, deep)


def test_limits_hold_the_guest_and_the_process_around_it() -> None:
    limits = choose_limits(PLAN, FACTS)
    assert 0.5 < limits.cpu < 0.6
    assert PLAN.memory_bytes < choose_limits(PLAN, KVM).memory_bytes < limits.memory_bytes


def test_a_cpu_by_name_is_had_in_full_and_all_there_is_needs_no_name() -> None:
    kvm = msgspec.structs.replace(FACTS, accelerator="kvm")
    assert values(translate(changed(cpu_model="Westmere-v1")), "-cpu") == ["Westmere-v1,enforce"]
    assert values(translate(changed(cpu_model="max@10.0")), "-cpu") == ["max"]
    assert values(translate(changed(cpu_model="host@0a1b"), kvm), "-cpu") == ["host"]
    assert [values(translate(PLAN, facts), "-cpu") for facts in (FACTS, kvm)] == [["max"], ["host"]]


def test_a_machine_is_built_as_the_qemu_did_that_it_began_on() -> None:
    frame = plan_frame(PLAN, 4, 1 << 30, "9.2")
    words = translate_guest(PLAN, frame, PATHS, FACTS, number(PLAN), incoming=True)
    assert values(words, "-machine")[0].startswith("pc-q35-9.2,")


def test_a_guest_that_moves_by_differences_may_hold_the_pages_that_they_are_to() -> None:
    settings = MigrationSettings(mode="xbzrle", cache_bytes=512 << 20)
    still, plain = choose_limits(PLAN, FACTS), choose_limits(PLAN, FACTS, MigrationSettings())
    assert plain == still
    assert choose_limits(PLAN, FACTS, settings).memory_bytes == still.memory_bytes + (512 << 20)
