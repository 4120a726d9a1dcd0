"""Packages on a machine with systemd: its guests live through upgrades, crashes, a full disk, removal and return."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.host.guest_lab import bring_tiny
from tests.host.packaged_machine import ADDRESS, Network, PackagedMachine
from tools.packages.build import build_packages
from tools.packages.tree import ROOT

from weft import __version__
from weft.images.busybox.build import build_busybox

pytestmark = [pytest.mark.host, pytest.mark.long]
NEWER = "99.1.0"
# Asks the container every 20 ms until /run/enough is there: how many requests there were, how many failed, the longest wait.
ASK = f"""
import http.client, os, time
count = failed = 0; longest = 0.0
while not os.path.exists("/run/enough"):
    began = time.monotonic(); count += 1
    try:
        line = http.client.HTTPConnection("{ADDRESS}", 8080, timeout=5)
        line.request("GET", "/"); assert line.getresponse().read() == b"hi\\n"; line.close()
    except Exception as problem:
        failed += 1; print(problem)
    longest = max(longest, time.monotonic() - began); time.sleep(0.02)
print(count, failed, round(longest * 1000))
"""


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages of this release and of a newer one, and two images."""
    if os.geteuid() != 0 or shutil.which("systemd-nspawn") is None:
        pytest.skip("needs root and systemd-nspawn (Debian: systemd-container)")
    folder = tmp_path_factory.mktemp("given")
    build_packages(folder / "now", level=0)
    copy = tmp_path_factory.mktemp("source")
    for name in ("src", "tools", "docs", "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE"):
        place = ROOT / name
        if place.is_dir():
            shutil.copytree(place, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(place, copy / name)
    mark = copy / "src/weft/__init__.py"
    mark.write_text(mark.read_text().replace(__version__, NEWER))
    script = "import sys; from pathlib import Path; from tools.packages.build import build_packages; "
    script += "build_packages(Path(sys.argv[1]), level=0)"
    environment = {**os.environ, "PYTHONPATH": f"{copy / 'src'}:{copy}", "SOURCE_DATE_EPOCH": "1"}
    subprocess.run([sys.executable, "-c", script, folder / "newer"], check=True, cwd=copy, env=environment, timeout=300)
    shutil.copy(bring_tiny(), folder / "tiny.tar")
    build_busybox(folder / "busybox.tar", folder)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


@pytest.fixture(scope="module")
def machine(given: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PackagedMachine]:
    """A server and a node with a VM and a container."""
    network = Network()
    machine = PackagedMachine(network, tmp_path_factory.mktemp("place"), given)
    try:
        machine.run("dpkg -i /srv/given/now/*.deb")
        join = machine.ask("weft server init | grep 'agent join'")
        machine.run(join)
        machine.until("weft node list --no-header | grep Ready")
        for image in ("tiny", "busybox"):
            machine.run(f"weft image add {image} file:///srv/given/{image}.tar")
        machine.run("weft vm create web --image tiny --memory 128M", seconds=300)
        machine.run(
            "weft container create api --image busybox --memory 32M --publish 8080:80 -- "
            "sh -c 'echo hi >/index.html; exec httpd -f -p 80'"
        )
        machine.until(f"curl -sf http://{ADDRESS}:8080/")
        yield machine
    finally:
        machine.close()
        network.close()


def list_guests(machine: PackagedMachine) -> list[str]:
    """The processes of the guests, with when each began."""
    found = machine.ask("pgrep -f '^/usr/bin/qemu-system' ; pgrep -x httpd").split()
    assert len(found) == 2
    return [machine.ask(f"cut -d' ' -f1,22 /proc/{pid}/stat") for pid in found]


def read_releases(machine: PackagedMachine) -> list[str]:
    """Those of the server and of the node."""
    servers, nodes = (json.loads(machine.ask(f"weft {noun} list -o json")) for noun in ("server", "node"))
    return [servers["items"][0]["status"]["release"], nodes["items"][0]["report"]["version"]]


class Requests:
    """Requests to the container while something happens."""

    def __init__(self, machine: PackagedMachine) -> None:
        self._machine = machine
        machine.run("rm -f /run/enough")
        self._asking = machine.begin(f"python3 -c '{ASK}'")

    def end(self) -> tuple[int, int, int]:
        self._machine.run("touch /run/enough")
        out, err = self._asking.communicate(timeout=60)
        assert self._asking.returncode == 0, err
        count, failed, longest = map(int, out.splitlines()[-1].split())
        print(f"{count} requests, {failed} failed, {longest} ms at most", out[:500] if failed else "")
        return count, failed, longest


def test_all_machines_are_upgraded_under_running_guests_and_go_back(machine: PackagedMachine) -> None:
    before = list_guests(machine)
    machine.run("echo '# ours' >>/etc/weft/agent.yaml")
    shown = machine.ask("weft fabric upgrade --to /srv/given/newer --dry-run")
    assert re.search(rf"1 +server/\w+ +{re.escape(__version__)} +{re.escape(NEWER)}", shown)
    for folder, release in (("newer", NEWER), ("now", __version__)):
        requests = Requests(machine)
        machine.run(f"weft fabric upgrade --to /srv/given/{folder}", seconds=400)
        count, failed, _ = requests.end()
        assert read_releases(machine) == [release, release]
        assert list_guests(machine) == before
        assert (failed, count > 100) == (0, True)
    assert machine.ask("tail -1 /etc/weft/agent.yaml") == "# ours"
    assert (
        machine.ask("dpkg-query -W -f '${Version}\\n' weft-client weft-server weft-agent").split() == [__version__] * 3
    )
    refused = machine.run(f"weft fabric upgrade --to {__version__}", check=False)
    assert (refused.returncode, f"all 2 machines have weft {__version__}" in refused.stderr) == (5, True)


def test_daemons_that_are_killed_leave_the_guests_alone(machine: PackagedMachine) -> None:
    before, requests = list_guests(machine), Requests(machine)
    for unit in ("weft-agent", "weft-server"):
        pid = machine.ask(f"systemctl show -p MainPID --value {unit}")
        machine.run(f"kill -9 {pid}")
        machine.until(f"[ $(systemctl show -p MainPID --value {unit}) != {pid} ] && systemctl is-active {unit}")
    machine.until("weft node list --no-header | grep Ready")
    _, failed, _ = requests.end()
    assert (failed, list_guests(machine)) == (0, before)


def test_a_disk_that_is_full_while_packages_are_unpacked_stops_the_upgrade_and_loses_nothing(
    machine: PackagedMachine,
) -> None:
    before = list_guests(machine)
    machine.run(
        "dd if=/dev/zero of=/root/full bs=1M 2>/dev/null; truncate -s -75M /root/full",
        check=False,
    )
    stopped = machine.run("weft fabric upgrade --to /srv/given/newer", check=False, seconds=400)
    assert stopped.returncode == 1
    assert "No space left on device" in stopped.stderr, stopped.stderr
    name = machine.ask("weft upgrade list --no-header | grep Stopped | cut -d' ' -f1")
    machine.run("rm /root/full")
    machine.run(f"weft upgrade resume {name}", seconds=400)
    assert read_releases(machine) == [NEWER, NEWER]
    assert list_guests(machine) == before


def test_an_installation_that_is_cut_off_is_finished(machine: PackagedMachine) -> None:
    before = list_guests(machine)
    (to,) = {"now", "newer"} - {"newer" if read_releases(machine) == [NEWER, NEWER] else "now"}
    machine.run(f"weft fabric upgrade --to /srv/given/{to} --detach")
    machine.until("[ -e /var/lib/weft/install/server/wanted ] && pgrep -x dpkg || pgrep -x dpkg-deb")
    machine.run(
        "systemctl kill -s KILL weft-server-install.service weft-agent-install.service; pkill -9 dpkg", check=False
    )
    machine.until("! weft upgrade list --no-header | grep -E 'Running|Waiting' && weft upgrade list --no-header", 180)
    release = NEWER if to == "newer" else __version__
    assert read_releases(machine) == [release, release]
    assert "ii " in machine.ask("dpkg -l weft-server | tail -1")
    assert machine.ask("dpkg --audit") == ""
    assert list_guests(machine) == before
    machine.run("systemctl mask --now weft-agent-install.path")
    (back,) = {"now", "newer"} - {to}
    stopped = machine.run(f"weft fabric upgrade --to /srv/given/{back}", check=False, seconds=400)
    assert "weft-agent-install.path is masked on this machine" in stopped.stderr
    machine.run("systemctl unmask weft-agent-install.path; systemctl start weft-agent-install.path")
    machine.run("weft upgrade resume $(weft upgrade list --no-header | grep Stopped | cut -d' ' -f1)", seconds=400)
    assert list_guests(machine) == before


def test_an_agent_that_is_removed_and_comes_back_finds_its_guests(machine: PackagedMachine) -> None:
    before, requests = list_guests(machine), Requests(machine)
    machine.run("dpkg --remove weft-agent")
    assert list_guests(machine) == before
    machine.run("dpkg -i /srv/given/newer/weft-agent_*.deb")
    machine.until("weft node list --no-header | grep Ready")
    _, failed, _ = requests.end()
    assert (failed, list_guests(machine)) == (0, before)
    assert "Running" in machine.until("weft vm list --no-header | grep Running")


class Cluster:
    """A server and two nodes, as in docs/guide/install.md; ``typed`` is what people type for that."""

    def __init__(self, given: Path, folder: Path) -> None:
        self.network, self.typed = Network(), list[str]()
        self.machines = {
            name: PackagedMachine(self.network, folder, given, name, "1500m") for name in ("m1", "m2", "m3")
        }
        self.server, *self.nodes = self.machines.values()

    def type_in(self, machine: PackagedMachine, line: str, seconds: float = 300) -> str:
        self.typed.append(line)
        run = machine.run(line, seconds=seconds)
        print(f"{machine.name}$ {line}\n{run.stdout}{run.stderr}")
        return run.stdout

    def install(self) -> None:
        self.type_in(self.server, "dpkg -i /srv/given/now/weft-client_*.deb /srv/given/now/weft-server_*.deb")
        said = self.type_in(self.server, "weft server init")
        for node in self.nodes:
            join = re.findall("^weft agent join .*$", said, re.MULTILINE)[0]
            self.type_in(node, "dpkg -i /srv/given/now/weft-client_*.deb /srv/given/now/weft-agent_*.deb")
            self.type_in(node, join)
            if node is not self.nodes[-1]:
                said = self.type_in(self.server, "weft token create --join")
        self.server.until("[ $(weft node list --no-header | grep -c Ready) = 2 ]")
        self.type_in(self.server, "weft image add tiny file:///srv/given/tiny.tar")
        self.type_in(self.server, "weft vm create web --image tiny --memory 128M")

    def close(self) -> None:
        for machine in self.machines.values():
            machine.close()
        self.network.close()


@pytest.fixture(scope="module")
def cluster(given: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(given, tmp_path_factory.mktemp("cluster"))
    try:
        cluster.install()
        yield cluster
    finally:
        cluster.close()


def test_three_machines_become_a_cluster_with_ten_commands_at_most(cluster: Cluster) -> None:
    assert cluster.server.ask("weft exec vm/web -- uname -s") == "Linux"
    assert len(cluster.typed) <= 10
    for line in ("weft doctor", "weft node list", "weft server list", "weft ps"):
        print(f"$ {line}\n{cluster.server.run(line).stdout}")
    print(cluster.nodes[0].run("weft doctor", check=False))


def test_a_node_is_emptied_and_rebooted_for_its_packages_and_its_guest_goes_on_in_the_newer_qemu(
    cluster: Cluster,
) -> None:
    server, boot = cluster.server, "weft exec vm/web -- cat /proc/sys/kernel/random/boot_id"

    def read_home() -> str:
        return str(json.loads(server.ask("weft vm get web -o json"))["status"]["node"])

    home, before = read_home(), server.ask(boot)
    node = cluster.machines[home]
    node.run(
        "cd /usr/bin && cp qemu-system-x86_64 qemu.dpkg-new && mv qemu.dpkg-new qemu-system-x86_64"
    )  # as dpkg does
    node.run("echo linux-image-amd64 >/run/reboot-required.pkgs; touch /run/reboot-required")
    server.until("weft node list -o wide | grep 'ask for it: linux-image-amd64; 1 guest runs in an earlier QEMU'")
    server.until("weft describe vm web | grep 'its QEMU was upgraded since it started'")
    print(server.run("weft fabric upgrade --renew --dry-run"))
    renewing = server.begin("weft fabric upgrade --renew")
    node.await_reboot()
    said, problems = renewing.communicate(timeout=300)
    print(said, problems)
    assert renewing.returncode == 0 and "Done: 3 of 3 machines have weft" in said and "; 1 node was renewed" in said
    assert read_home() != home and server.ask(boot) == before, "it wasn't booted again"
    assert server.ask("weft node list --no-header | grep -c ' Ready '") == "2"
    refused = server.run("weft fabric upgrade --renew", check=False)
    assert refused.returncode == 5 and "no machine needs a reboot" in refused.stderr
