"""What a guest is told at its first boot, in the form its image reads, and what its firmware boots."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import jsonschema_rs
import pytest
import yaml
from tests.unit.agent.test_agent_parts import prepared, wanted

from weft.agent.workload.seed import build_nocloud, build_tar, pack_iso
from weft.agent.workload.user_data import refuse_unread_user_data
from weft.agent.workload.vm import choose_seed, plan_guest
from weft.contracts.driver.runtime import BootDisk, BootKernel
from weft.images.debian.root import FILES
from weft.objects.errors import InvalidInput
from weft.objects.image.bundle import BundleManifest

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHdlZnQgdGVzdCBrZXkgb2YgbnVtYmVyIG9uZQ me"
DEBIAN = BundleManifest("d", "qcow2", "k", "i", "quiet", agent=True, qemu_agent=True, seed="nocloud")
TINY = BundleManifest("d", "qcow2", "k", "i", "quiet", agent=True)
SCHEMA = Path(__file__).with_name("cloud_config_schema.json")
CLOUD = BundleManifest("d", "qcow2", seed="nocloud")


def read_iso(data: bytes) -> tuple[str, dict[str, bytes]]:
    """Label and files, as the descriptor at sector 16 leads to them."""
    start = data[16 * 2048 : 17 * 2048]
    assert start[:7] == b"\1CD001\1" and data[17 * 2048 :][:6] == b"\xffCD001"
    (sectors,) = struct.unpack_from("<I", start, 80)
    assert sectors * 2048 == len(data)
    place, size = (struct.unpack_from("<I", start, 156 + at)[0] for at in (2, 10))
    folder, at, files = data[place * 2048 : place * 2048 + size], 0, {}
    while folder[at]:
        name = folder[at + 33 : at + 33 + folder[at + 32]]
        where, length = (struct.unpack_from("<I", folder, at + 2 + more)[0] for more in (0, 8))
        assert struct.unpack_from(">I", folder, at + 6)[0] == where
        if name not in (b"\0", b"\1"):
            files[name.decode().partition(";")[0].lower()] = data[where * 2048 : where * 2048 + length]
        at += folder[at]
    return start[40:72].decode().strip(), files


def test_an_iso_holds_its_files_whole_and_is_the_same_each_time() -> None:
    files = {"b": b"x" * 5000, "a": b"", "user-data": b"#!/bin/sh\n"}
    assert read_iso(pack_iso("cidata", files)) == ("cidata", files)
    assert pack_iso("cidata", files) == pack_iso("cidata", dict(reversed(files.items())))


def test_cloud_init_learns_name_users_keys_network_and_the_users_own_data() -> None:
    label, files = read_iso(build_nocloud(wanted(user_data="#!/bin/sh\necho hällo\n", ssh_keys=[KEY], users=["ann"])))
    assert label == "cidata" and files["user-data"].decode() == "#!/bin/sh\necho hällo\n"
    meta = json.loads(files["meta-data"])
    assert meta["local-hostname"] == "web" and meta["public-keys"] == [KEY]
    first, ours = files["vendor-data"].split(b"\n", 1)
    assert first == b"#cloud-config" and json.loads(ours)["disable_root"] is False
    assert [user if user == "default" else user["name"] for user in json.loads(ours)["users"]] == ["default", "ann"]
    (nic,) = json.loads(files["network-config"])["ethernets"].values()
    assert nic["dhcp4"] and nic["match"]["macaddress"] == wanted().spec.nics[0].mac


@pytest.mark.parametrize("keys", [[], [KEY]])
def test_what_cloud_init_gets_from_weft_is_valid_to_it(keys: list[str]) -> None:
    """By the parts of the schema of cloud-init 22.4.2, Debian 12's, about what weft writes: it warns of anything else."""
    schema = jsonschema_rs.Draft4Validator(json.loads(SCHEMA.read_text()))
    _, files = read_iso(build_nocloud(wanted(ssh_keys=keys, users=["ann"], user_data="#cloud-config\n{}\n")))
    for text in (files["vendor-data"].decode(), FILES["etc/cloud/cloud.cfg.d/90-weft.cfg"]):
        found = [(one.instance_path, one.message) for one in schema.iter_errors(yaml.safe_load(text))]
        assert not found


def test_a_guest_that_came_from_another_cluster_is_the_same_instance_to_cloud_init() -> None:
    for instance, known in (("", wanted().spec.workload.uid), ("its-first-uid", "its-first-uid")):
        _, files = read_iso(build_nocloud(wanted(instance=instance)))
        assert json.loads(files["meta-data"])["instance-id"] == known
        assert f"instance-id: {known}\n".encode() in build_tar(wanted(instance=instance))


def test_a_guest_with_nothing_to_be_told_is_spared_cloud_init() -> None:
    assert choose_seed(wanted(), prepared(DEBIAN)) is None
    plan = plan_guest(wanted(), prepared(DEBIAN))
    assert isinstance(plan.boot, BootKernel) and plan.boot.cmdline == "quiet cloud-init=disabled"
    assert choose_seed(wanted(ssh_keys=[KEY]), prepared(DEBIAN)) == "nocloud"
    told = plan_guest(wanted(), prepared(DEBIAN, seed="/s"))
    assert isinstance(told.boot, BootKernel) and told.boot.cmdline == "quiet"
    assert choose_seed(wanted(), prepared(CLOUD)) == "nocloud"  # others look for data until they find some
    assert choose_seed(wanted(firmware="uefi"), prepared(DEBIAN)) == "nocloud"
    assert choose_seed(wanted(user_data="#!/bin/sh\n"), prepared(TINY)) == "tar"


def test_keys_for_an_image_that_can_not_take_them_are_refused_by_name() -> None:
    with pytest.raises(InvalidInput, match="image tiny has no cloud-init") as caught:
        choose_seed(wanted(ssh_keys=[KEY]), prepared(TINY))
    assert caught.value.field == "spec.ssh_keys"


@pytest.mark.parametrize("text", ["#cloud-config\nusers: [ann]\n", "\n#!/bin/sh\n", "packages: [nginx]\n"])
def test_user_data_that_an_image_without_cloud_init_does_not_run_is_refused(text: str) -> None:
    with pytest.raises(
        InvalidInput, match="image tiny has no cloud-init, and runs user data only if it begins"
    ) as caught:
        refuse_unread_user_data(wanted(user_data=text), prepared(TINY).image)
    assert (caught.value.token, caught.value.field) == ("noCloudInit", "spec.user_data")
    refuse_unread_user_data(wanted(user_data="#!/bin/sh\n"), prepared(TINY).image)
    refuse_unread_user_data(wanted(), prepared(TINY).image)


@pytest.mark.parametrize("text", ["users: [ann]\n", "# cloud-config\nusers: [ann]\n", "{}", "hello"])
def test_user_data_in_no_form_of_cloud_init_is_refused(text: str) -> None:
    for manifest in (DEBIAN, CLOUD):
        with pytest.raises(InvalidInput, match="no form that cloud-init knows") as caught:
            refuse_unread_user_data(wanted(user_data=text), prepared(manifest).image)
        assert (caught.value.token, caught.value.field) == ("unknownUserData", "spec.user_data")


@pytest.mark.parametrize(
    "text",
    [
        "\n #cloud-config\n",
        "#!/bin/sh",
        "#Include-once\nhttps://a",
        "Content-Type: multipart/mixed;",
        "## template: jinja\n",
        "#ps1_sysnative\n",
    ],
)
def test_every_form_that_cloud_init_knows_is_taken(text: str) -> None:
    refuse_unread_user_data(wanted(user_data=text), prepared(DEBIAN).image)


def test_firmware_is_what_was_asked_for_and_has_a_screen() -> None:
    plan = plan_guest(wanted(firmware="uefi"), prepared(DEBIAN, seed="/s"))
    assert plan.boot == BootDisk("uefi") and plan.screen
    assert not plan_guest(wanted(), prepared(DEBIAN)).screen
    assert plan_guest(wanted(screen="yes"), prepared(DEBIAN)).screen
    with pytest.raises(InvalidInput, match="has no boot loader"):
        plan_guest(wanted(firmware="bios"), prepared(TINY))
