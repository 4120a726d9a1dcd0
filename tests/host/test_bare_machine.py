"""The packages on a machine that has Debian 12 and nothing more: what they depend on is all that they need."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.host.guest_lab import bring_tiny
from tests.host.packaged_machine import Network, PackagedMachine
from tools.packages.build import build_packages

from weft.images.busybox.build import build_busybox

pytestmark = [pytest.mark.host, pytest.mark.long]
PACKAGES = "/srv/given/*.deb"
QEMU = (
    "--no-install-recommends -t bookworm-backports qemu-system-x86 qemu-utils seabios"  # as docs/guide/install.md says
)
BACKPORTS = Path("/etc/apt/sources.list.d/weft-backports.sources")  # of make install
# The machines below reach no network: what apt will want is there already, as if it had just been fetched.
FETCH = f"""
set -e
mount --bind "$1" "$1"; cd "$1"
mount -t proc proc proc; mount --rbind /dev dev; mount --bind "$2" srv/given; cp /etc/resolv.conf etc/resolv.conf
exec chroot . env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root DEBIAN_FRONTEND=noninteractive sh -ec '
    apt-get -q update
    apt-get -q install -y --download-only {PACKAGES}
    apt-get -q install -y --download-only {QEMU}
'
"""


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("given")
    build_packages(folder, level=0)
    shutil.copy(bring_tiny(), folder / "tiny.tar")
    build_busybox(folder / "busybox.tar", folder)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


@pytest.fixture(scope="module")
def debian(given: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The root of a machine as Debian's installer leaves it without further choices, with backports among its sources."""
    if os.geteuid() != 0 or shutil.which("mmdebstrap") is None or not BACKPORTS.exists():
        pytest.skip("needs root, and what make install installs")
    root = tmp_path_factory.mktemp("debian") / "root"
    argv = ["mmdebstrap", "--quiet", "--mode=root", "--variant=important", "--include=systemd-sysv,ca-certificates"]
    subprocess.run([*argv, "--dpkgopt=force-unsafe-io", "bookworm", root], check=True, timeout=600)
    shutil.copy(BACKPORTS, root / "etc/apt/sources.list.d/backports.sources")
    (root / "srv/given").mkdir()
    run = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", FETCH, "fetch", root, given]
    subprocess.run(run, check=True, timeout=600)
    yield root
    shutil.rmtree(root)


@pytest.fixture(scope="module")
def machine(debian: Path, given: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PackagedMachine]:
    network = Network()
    machine = PackagedMachine(network, tmp_path_factory.mktemp("place"), given, size="4g", below=str(debian))
    yield machine
    machine.close()
    network.close()


def test_what_apt_installs_runs_a_container_and_a_vm(machine: PackagedMachine) -> None:
    assert machine.run("command -v python3 qemu-system-x86_64 crun weft", check=False).stdout == ""
    apt = "DEBIAN_FRONTEND=noninteractive apt-get -q install -y"
    run = machine.run(f"{apt} {PACKAGES}", seconds=600)
    assert "not found" not in run.stdout + run.stderr
    machine.run(f"{apt} {QEMU}", seconds=600)
    assert machine.ask("dpkg --audit") == ""
    lost = machine.run("find /usr/lib/weft -name '*.so*' -type f -exec ldd {} + 2>&1 | grep 'not found'", check=False)
    assert lost.stdout == ""
    machine.run(machine.ask("weft server init | grep 'agent join'"))
    machine.until("weft node list --no-header | grep Ready")
    doctor = machine.run("weft doctor", check=False).stdout
    print(doctor)
    assert "missing" not in doctor
    for image in ("tiny", "busybox"):
        machine.run(f"weft image add {image} file:///srv/given/{image}.tar")
    machine.run("weft container create api --image busybox --memory 32M -- sleep 1000")
    machine.run("weft vm create web --image tiny --memory 128M", seconds=300)
    for guest in ("container/api", "vm/web"):
        assert machine.ask(f"weft exec {guest} -- uname -s") == "Linux"
    assert "Traceback" not in machine.ask("journalctl -u weft-server -u weft-agent --no-pager")
    machine.run("apt-get -q purge -y weft-agent weft-server weft-client")
    assert machine.run("ls -d /usr/lib/weft /etc/weft", check=False).stdout == ""
