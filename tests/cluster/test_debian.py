"""A real distribution: debian-12 as built here, told its users and keys, reached by SSH, booted by kernel and by firmware.

The image is built once per recipe into the clone's cache; the guest is one and the same for all of this.
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
from weft.agent.seed import pack_iso

pytestmark = [pytest.mark.host, pytest.mark.timeout(1200)]  # a busy machine builds and boots it in minutes
NAME = "deb"
BOOTED_BY = "[ -d /sys/firmware/efi ] && echo uefi || echo bios; cat /proc/cmdline"
USER_DATA = "#!/bin/sh\necho told >/root/said\n"


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ssh") / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path


@pytest.fixture(scope="module")
def deb(cluster: Cluster, key: Path) -> Iterator[Cluster]:
    """The cluster with a Debian in it."""
    cluster.ok("image", "build", "debian-12", timeout=900)
    (cluster.folder / "tools.iso").write_bytes(pack_iso("TOOLS", {"hello.txt": b"from the cd\n"}))
    (cluster.folder / "setup.sh").write_text(USER_DATA)
    wish = ["--image", "debian-12", "--memory", "512M", "--ssh-key", f"{key}.pub", "--user", "ann"]
    wish += ["--user-data", "setup.sh", "--iso", "./tools.iso", "--screen", "yes", "--grace", "180s"]
    cluster.ok("vm", "create", NAME, *wish, timeout=600)
    yield cluster
    cluster.ok("vm", "delete", NAME, "--yes")


def inside(deb: Cluster, script: str, timeout: float = 600) -> str:
    return deb.ok("vm", "exec", NAME, "--", "sh", "-c", script, timeout=timeout).strip()


def ssh(deb: Cluster, key: Path, user: str, *words: str) -> str:
    return deb.ok("ssh", "-i", str(key), f"{user}{NAME}", "--", *words, timeout=300).strip()


def test_it_has_the_name_the_users_and_the_network_it_was_told(deb: Cluster) -> None:
    assert inside(deb, "hostname; . /etc/os-release; echo $VERSION_CODENAME") == f"{NAME}\nbookworm"
    assert inside(deb, "id -un ann && sudo -l -U ann | grep -c NOPASSWD") == "ann\n1"
    assert deb.vm(NAME)["status"]["address"] in inside(deb, "ip -4 -brief address")
    assert inside(deb, "getent hosts hello")
    assert inside(deb, "cloud-init status --wait >/dev/null; cat /root/said") == "told"
    assert (
        inside(deb, "modprobe isofs; mount -o ro /dev/sr0 /mnt && cat /mnt/hello.txt && umount /mnt") == "from the cd"
    )


def test_ssh_logs_in_through_the_gateway_as_the_user_or_as_root(deb: Cluster, key: Path) -> None:
    assert ssh(deb, key, "", "whoami") == "ann"
    assert ssh(deb, key, "root@", "whoami; exit 0") == "root"
    refused = deb.run("ssh", "-i", str(key), f"{NAME}", "--", "exit 7", timeout=60)
    assert refused.returncode == 7
    assert "made without an SSH key" in deb.fails(2, "ssh", "hello")


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
    assert "no file /nonesuch" in deb.fails(3, "cp", "hello:/nonesuch", str(tmp_path))


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
def test_without_wefts_own_agent_commands_run_over_qemu_guest_agent(deb: Cluster) -> None:
    deb.run("vm", "exec", NAME, "--", "systemctl", "mask", "--now", "--runtime", "weft-agent.service")  # ends itself
    for _ in range(100):
        said = deb.run("vm", "exec", NAME, "--", "sh", "-c", "cat; tr '\\0' ' ' </proc/$PPID/cmdline", stdin=b"hello ")
        if b"qemu-ga" in said.stdout:
            break
    assert said.stdout.startswith(b"hello ") and b"qemu-ga" in said.stdout
    assert deb.run("vm", "exec", NAME, "--", "sh", "-c", "echo no >&2; exit 5").returncode == 5
    assert "gives no terminals" in deb.fails(2, "vm", "exec", "-t", NAME, "--", "sh")


def test_it_shuts_itself_down_when_it_is_stopped(deb: Cluster) -> None:
    deb.ok("vm", "stop", NAME, timeout=240)
    assert "reboot: Power down" in deb.ok("vm", "logs", NAME, "--tail", "5")


@pytest.mark.long
@pytest.mark.parametrize("firmware", ["uefi", "bios"])
def test_firmware_boots_it_through_its_own_loader(deb: Cluster, firmware: str) -> None:
    deb.ok("vm", "stop", NAME, timeout=240)
    vm = deb.vm(NAME)
    vm["spec"]["firmware"] = firmware
    wish = json.dumps({"kind": "vm", "name": NAME, "spec": {k: v for k, v in vm["spec"].items() if k != "run"}})
    deb.ok("apply", "-f", "-", stdin=wish.encode(), timeout=600)
    deb.ok("vm", "start", NAME, timeout=600)
    booted_by, command_line = inside(deb, BOOTED_BY).splitlines()
    assert booted_by == firmware and "BOOT_IMAGE=/boot/vmlinuz" in command_line
    assert inside(deb, "cat /root/said; journalctl --list-boots | wc -l; hostname").splitlines()[::2] == ["told", NAME]
