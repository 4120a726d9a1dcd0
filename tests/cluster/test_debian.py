"""A real distribution: debian-12 as built here, told its users and keys, reached by SSH, booted by kernel and by firmware.

The image is built once per recipe into the clone's cache. One guest is told nothing, which spares it cloud-init and most of
its boot; the other, for the longer forms, is told all there is.
"""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.cluster.cluster import WEFT, Cluster
from weft.agent.workload.seed import pack_iso

pytestmark = [pytest.mark.host, pytest.mark.timeout(1200)]  # a busy machine builds and boots it in minutes
NAME, TOLD = "deb", "told"
BOOTED_BY = "[ -d /sys/firmware/efi ] && echo uefi || echo bios; cat /proc/cmdline"
SIZE = ("--image", "debian-12", "--memory", "512M", "--grace", "180s")
USER_DATA = "#!/bin/sh\necho told >/root/said\n"


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ssh") / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path


@pytest.fixture(scope="module")
def image(cluster: Cluster) -> Cluster:
    """The cluster with the image."""
    cluster.ok("image", "build", "debian-12", timeout=900)
    return cluster


@pytest.fixture(scope="module")
def deb(image: Cluster) -> Iterator[Cluster]:
    """The cluster with a Debian in it."""
    (image.folder / "tools.iso").write_bytes(pack_iso("TOOLS", {"hello.txt": b"from the cd\n"}))
    wish = ["--iso", "./tools.iso", "--screen", "yes"]
    image.ok("vm", "create", NAME, *SIZE, *wish, timeout=600)
    yield image
    image.ok("vm", "delete", NAME, "--yes")


@pytest.fixture(scope="module")
def told(image: Cluster, key: Path) -> Iterator[Cluster]:
    """The cluster with a Debian in it that knows of users, keys, and what to do first."""
    (image.folder / "setup.sh").write_text(USER_DATA)
    wish = ["--ssh-key", f"{key}.pub", "--user", "ann", "--user-data", "setup.sh"]
    image.ok("vm", "create", TOLD, *SIZE, *wish, timeout=600)
    yield image
    image.ok("vm", "delete", TOLD, "--yes")


def inside(cluster: Cluster, script: str, name: str = TOLD) -> str:
    return cluster.ok("vm", "exec", name, "--", "sh", "-c", script, timeout=600).strip()


def ssh(told: Cluster, key: Path, user: str, *words: str) -> str:
    return told.ok("ssh", "-i", str(key), f"{user}{TOLD}", "--", *words, timeout=300).strip()


def check_place(cluster: Cluster, name: str) -> None:
    """It is what it should be, where it should be, and sees its network."""
    assert inside(cluster, "hostname; . /etc/os-release; echo $VERSION_CODENAME", name) == f"{name}\nbookworm"
    assert cluster.vm(name)["status"]["address"] in inside(cluster, "ip -4 -brief address", name)
    # Commands wait 3 s for the network, and a guest on a busy machine may need longer.
    assert inside(cluster, "for i in $(seq 30); do getent hosts hello && exit; sleep 1; done; exit 1", name)


def test_it_has_its_name_its_network_and_its_cd(deb: Cluster) -> None:
    check_place(deb, NAME)
    read = "modprobe isofs; mount -o ro /dev/sr0 /mnt && cat /mnt/hello.txt && umount /mnt"
    assert inside(deb, read, NAME) == "from the cd"
    assert "created without an SSH key" in deb.fails(2, "ssh", NAME)


@pytest.mark.long
def test_it_has_the_users_it_was_told_of_and_did_what_it_was_told(told: Cluster) -> None:
    check_place(told, TOLD)
    assert inside(told, "id -un ann && sudo -l -U ann | grep -c NOPASSWD") == "ann\n1"
    assert inside(told, "cloud-init status --wait >/dev/null; cat /root/said") == "told"
    assert inside(told, "cloud-init status --long; cat /run/cloud-init/result.json").count("error") == 1  # "errors": []


@pytest.mark.long
def test_ssh_logs_in_through_the_gateway_as_the_user_or_as_root(told: Cluster, key: Path) -> None:
    assert ssh(told, key, "", "whoami") == "ann"
    assert ssh(told, key, "root@", "whoami; exit 0") == "root"
    refused = told.run("ssh", "-i", str(key), TOLD, "--", "exit 7", timeout=60)
    assert refused.returncode == 7


def test_files_and_folders_are_copied_either_way(deb: Cluster, tmp_path: Path) -> None:
    data = os.urandom(2_000_000)
    (tmp_path / "there").write_bytes(data)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("in a folder\n")
    for guest in (NAME, "hello"):
        deb.ok("cp", str(tmp_path / "there"), f"{guest}:/root/")
        deb.ok("cp", f"{guest}:/root/there", str(tmp_path / f"back-{guest}"))
        assert (tmp_path / f"back-{guest}").read_bytes() == data
        deb.ok("cp", str(tmp_path / "folder"), f"{guest}:/root/folder")
        deb.ok("cp", f"{guest}:/root/folder", str(tmp_path / f"folder-{guest}"))
        assert (tmp_path / f"folder-{guest}" / "file").read_text() == "in a folder\n"
    assert "has no readable file /nonesuch" in deb.fails(3, "cp", "hello:/nonesuch", str(tmp_path))


def test_its_screen_speaks_rfb_over_a_web_socket(deb: Cluster) -> None:
    url = urlsplit(deb.ok("vm", "console", NAME, "--vnc", "--url").strip())
    tls = ssl.create_default_context()
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection((url.hostname or "", url.port or 0), timeout=20) as plain,
        tls.wrap_socket(plain) as sock,
    ):
        key = base64.b64encode(os.urandom(16)).decode()
        sock.sendall(
            f"GET {url.path}?{url.query} HTTP/1.1\r\nHost: {url.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        received = b""
        while b"RFB 003.008\n" not in received:
            data = sock.recv(4096)
            assert data, received
            received += data
        sock.sendall(b"\x82\x8c\0\0\0\0RFB 003.008\n")
        assert b"\x01" in sock.recv(100)  # a list of one: no authentication, the ticket was that


def test_a_vnc_viewer_finds_the_screen_at_a_port_here(deb: Cluster) -> None:
    with subprocess.Popen(
        [WEFT, "vm", "console", NAME, "--vnc"],
        cwd=deb.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as viewer:
        try:
            assert viewer.stdout is not None
            found = re.search(r"vnc://127\.0\.0\.1:(\d+)", viewer.stdout.readline())
            assert found is not None
            with socket.create_connection(("127.0.0.1", int(found[1])), timeout=20) as sock:
                assert sock.recv(12) == b"RFB 003.008\n"
        finally:
            viewer.terminate()


@pytest.mark.long
def test_without_wefts_own_agent_commands_run_over_qemu_guest_agent(told: Cluster) -> None:
    told.run("vm", "exec", TOLD, "--", "systemctl", "mask", "--now", "--runtime", "weft-agent.service")  # ends itself
    for _ in range(100):
        said = told.run("vm", "exec", TOLD, "--", "sh", "-c", "cat; tr '\\0' ' ' </proc/$PPID/cmdline", stdin=b"hello ")
        if b"qemu-ga" in said.stdout:
            break
    assert said.stdout.startswith(b"hello ") and b"qemu-ga" in said.stdout
    assert told.run("vm", "exec", TOLD, "--", "sh", "-c", "echo no >&2; exit 5").returncode == 5
    assert "has no terminals" in told.fails(2, "vm", "exec", "-t", TOLD, "--", "sh")


@pytest.mark.long
def test_it_shuts_itself_down_when_it_is_stopped(deb: Cluster) -> None:
    deb.ok("vm", "stop", NAME, timeout=240)
    assert "reboot: Power down" in deb.ok("vm", "logs", NAME, "--tail", "5")


@pytest.mark.long
@pytest.mark.parametrize("firmware", ["uefi", "bios"])
def test_firmware_boots_it_through_its_own_loader(told: Cluster, firmware: str) -> None:
    told.ok("vm", "stop", TOLD, timeout=240)
    vm = told.vm(TOLD)
    vm["spec"]["firmware"] = firmware
    wish = json.dumps({"kind": "vm", "name": TOLD, "spec": {k: v for k, v in vm["spec"].items() if k != "run"}})
    told.ok("apply", "-f", "-", stdin=wish.encode(), timeout=600)
    told.ok("vm", "start", TOLD, timeout=600)
    booted_by, command_line = inside(told, BOOTED_BY).splitlines()
    assert booted_by == firmware and "BOOT_IMAGE=/boot/vmlinuz" in command_line
    assert inside(told, "cat /root/said; journalctl --list-boots | wc -l; hostname").splitlines()[::2] == ["told", TOLD]
