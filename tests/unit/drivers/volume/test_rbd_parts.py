"""What a node reads of a Ceph pool, its configuration and its OSDs: no cluster is needed for that."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from weft.contracts.clock import SystemClock
from weft.contracts.driver.host import Capacity, Host
from weft.contracts.driver.layers import KeptDisk, KeptSnapshot
from weft.drivers.linux.ceph.conf import write_client_conf
from weft.drivers.linux.ceph.programs import CephClient
from weft.drivers.volume.rbd.base_images import BaseImages
from weft.drivers.volume.rbd.driver import RbdVolumes
from weft.drivers.volume.rbd.images import Images, choose_generation, is_disk_of, name_disk, read_generation, read_layer
from weft.drivers.volume.rbd.names import check_id
from weft.drivers.volume.rbd.osds import mean_latencies, read_sums
from weft.drivers.volume.rbd.place import CONF, RbdPlace, read_place
from weft.drivers.volume.rbd.records import Chain, Records, StoredDisk, StoredSnapshot, read_values
from weft.objects.errors import DriverFailed, InvalidInput, NotFound

CEPH_CONF = """
# of the storage team
[global]
    fsid = 1b
    mon host = 10.0.0.1, 10.0.0.2
    log-file = /var/log/ceph/$name.log
[client]
    rbd cache = false ; as they advise
[client.weft]
    keyring = {keyring}
[osd]
    osd_memory_target = 1
"""


def test_a_pool_is_named_with_what_differs_from_the_usual() -> None:
    assert read_place("weft") == RbdPlace("weft", CONF, "weft")
    assert read_place("vms?conf=/a/b.conf&user=other") == RbdPlace("vms", "/a/b.conf", "other")


@pytest.mark.parametrize("text", ["", "a/b", "weft?conf=relative", "weft?keyring=/x", "-weft", "weft?user="])
def test_what_is_not_a_pool_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_place(text)
    assert caught.value.field == "pool" and "ceph=rbd:" in str(caught.value.hint)


def test_a_guests_qemu_gets_one_text_with_the_monitors_and_the_key(tmp_path: Path) -> None:
    conf, keyring = tmp_path / "ceph.conf", tmp_path / "k"
    conf.write_text(CEPH_CONF.format(keyring=keyring))
    keyring.write_text('[client.weft]\n\tkey = AQsecret==\n\tcaps mon = "profile rbd"\n')
    lines = write_client_conf(str(conf), "weft").splitlines()
    assert lines[0] == "[global]" and "key = AQsecret==" in lines
    assert "mon_host = 10.0.0.1, 10.0.0.2" in lines and "rbd_cache = false" in lines
    assert not [line for line in lines if "keyring" in line or "/var/log" in line or "osd_memory" in line]


def test_a_missing_key_or_monitor_is_named(tmp_path: Path) -> None:
    conf = tmp_path / "ceph.conf"
    conf.write_text(CEPH_CONF.format(keyring=tmp_path / "k"))
    with pytest.raises(DriverFailed) as caught:
        write_client_conf(str(conf), "weft")
    assert "client.weft" in caught.value.message and "ceph auth get client.weft" in str(caught.value.hint)
    conf.write_text("[global]\nfsid = 1b\n")
    with pytest.raises(DriverFailed) as caught:
        write_client_conf(str(conf), "weft")
    assert "mon_host" in caught.value.message


def test_ids_that_would_be_read_as_something_else_are_refused() -> None:
    assert check_id("6f1f3c9e-1c2d") == "6f1f3c9e-1c2d"
    for id_ in ("", ".x", "-x", "a/b", "a=b", "a@b", "a\nb"):
        with pytest.raises(InvalidInput):
            check_id(id_)


def test_latencies_are_of_what_happened_between_two_looks() -> None:
    def tell(writes: int, seconds: float) -> dict[str, dict[str, dict[str, float]]]:
        return {"osd": {"op_w_latency": {"avgcount": writes, "sum": seconds}}}

    before, now = read_sums(tell(10, 1.0)), read_sums(tell(30, 1.5))
    assert mean_latencies(before, now) == {"write": 25.0}
    assert mean_latencies(now, now) == {}, "it did nothing"
    assert mean_latencies(now, read_sums(tell(2, 0.0246))) == {"write": 12.0}, "it started anew"


LISTED = """chain/weft-disk-a
value (14 bytes) :
00000000  7b 22 62 65 67 75 6e 22  3a 22 73 31 22 7d        |{"begun":"s1"}|
0000000e

kept/s
value (52 bytes) :
00000000  61 61 61 61 61 61 61 61  61 61 61 61 61 61 61 61  |aaaaaaaaaaaaaaaa|
*
00000030  7c 0a 2a 62                                       ||.*b|
00000034

none
value (0 bytes) :

"""


def test_what_rados_prints_of_an_object_is_read_also_where_it_leaves_lines_out() -> None:
    assert read_values(LISTED) == {
        "chain/weft-disk-a": b'{"begun":"s1"}',
        "kept/s": b"a" * 48 + b"|\n*b",
        "none": b"",
    }
    assert read_values("") == {}


def test_an_image_that_takes_anothers_place_is_of_a_higher_generation_and_says_why() -> None:
    images = [name_disk("v"), name_disk("v", 9, "one"), name_disk("v", 10, "two")]
    assert [read_generation(image) for image in images] == [0, 9, 10]
    assert [read_layer(image) for image in images] == ["", "one", "two"]
    assert all(is_disk_of(image, "v") for image in images) and not any(is_disk_of(image, "") for image in images)
    assert not is_disk_of(name_disk("v2"), "v")
    assert (choose_generation("v", images), choose_generation("w", images)) == (11, 0)


def test_a_layer_is_needed_by_a_snapshot_that_ends_with_it_and_by_another_volume() -> None:
    chains = {"a": Chain(("a@1", "a@2", "a@3")), "b": Chain(("a@1",))}
    kept = {"s": StoredSnapshot("u", {"root": StoredDisk(("a@1", "a@2"), 1)})}
    records = Records(chains, kept)
    assert records.list_unneeded("a", ["a"]) == ["a@1", "a@3"]
    assert records.list_unneeded("a", ["a", "b"]) == ["a@3"]
    assert records.list_kept_layers() == {"a@1", "a@2"}
    assert Records({"a": Chain(("a@1",), "2")}, {}).list_unneeded("a", ["a"]) == []


def test_layers_of_points_are_mergeable_that_no_snapshot_ends_with_and_no_volume_stands_on() -> None:
    points = {
        "p3": StoredSnapshot("u", {"root": StoredDisk(("a@1", "a@2", "a@3"), 1)}, came=True),
        "p5": StoredSnapshot("u", {"root": StoredDisk(("a@1", "a@2", "a@3", "a@4", "b@5"), 1)}, came=True),
    }
    taken = {"s": StoredSnapshot("u", {"root": StoredDisk(("v@1", "v@2"), 1)})}
    assert Records({}, points | taken).list_mergeable() == ["a@1", "a@2", "a@4"]
    assert Records({"w": Chain(("a@1", "a@2"))}, points).list_mergeable() == ["a@4"]


def test_a_record_of_an_earlier_version_is_read_and_a_point_keeps_what_it_is_a_copy_of() -> None:
    old = b'{"uid":"u","disks":{"root":{"layers":["a@1"],"size_bytes":8}},"workload":"w","taken_at":1.5}'
    kept = msgspec.json.decode(old, type=StoredSnapshot)
    assert kept.describe("s") == KeptSnapshot("s", "u", {"root": KeptDisk(("1",), 8)}, workload="w", taken_at=1.5)
    point = StoredSnapshot("u", kept.disks, source="there", consistency="crash", final=True, came=True)
    again = msgspec.json.decode(msgspec.json.encode(point), type=StoredSnapshot).describe("p")
    assert (again.source, again.consistency, again.final, again.came) == ("there", "crash", True, True)


def put_program(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}")
    (folder / name).chmod(0o755)


async def test_usage_is_asked_again_when_an_image_goes_while_rbd_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail = f"echo x >> {tmp_path}/asked; [ $(wc -l < {tmp_path}/asked) -gt 2 ] || exit 2\n"
    found = '{"images": [{"name": "weft-disk-a", "provisioned_size": 8, "used_size": 4}]}'
    put_program(tmp_path, "rbd", f"{fail}echo '{found}'")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    client, place = CephClient("/c", "weft", "pool ceph"), RbdPlace("weft", "/c", "weft")
    images = Images(client, place, BaseImages(client, place, "n1"), "pool ceph")
    assert await images.measure_all() == {"weft-disk-a": (8, 4)}
    put_program(tmp_path, "rbd", "exit 2")
    with pytest.raises(NotFound):
        await images.measure_all()


async def test_a_pool_that_has_just_filled_takes_no_new_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conf = tmp_path / "ceph.conf"
    conf.write_text(CEPH_CONF.format(keyring=tmp_path / "k"))
    (tmp_path / "k").write_text("[client.weft]\n\tkey = AQsecret==\n")
    df = '{{"pools": [{{"name": "weft", "id": 3, "stats": {{"stored": 4, "max_avail": {left}, "quota_bytes": 0}}}}]}}'

    def put_left(left: int) -> None:
        fsid = '{"fsid": "12345678123456781234567812345678"}'
        put_program(
            tmp_path,
            "ceph",
            f"case \"$*\" in *fsid*) echo '{fsid}';; *) echo '{df.format(left=left)}';; esac",
        )

    for name in ("rbd", "rados"):
        put_program(tmp_path, name, "exit 2")  # nothing is there yet
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    put_left(100)
    driver = RbdVolumes(
        Host("n1", "u", str(tmp_path), str(tmp_path), "w", "127.0.0.1", "lo", "weft/n1", Capacity(1, 1, 1)),
        SystemClock(),
        "ceph",
        f"weft?conf={conf}",
    )
    assert driver.pool().free_bytes == 100
    put_left(0)
    assert driver.pool().free_bytes == 100, "what was asked a moment ago"
    with pytest.raises(DriverFailed) as caught:
        await driver.ensure("v", size_bytes=1 << 20)
    assert caught.value.token == "noSpace" and "is full" in caught.value.message
