"""tiny's program for its devices, with tiny's root around it, in namespaces of this machine: NICs that come and go, leases that are
wrong, and what waits for them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from weft.images.parts import compile_program
from weft.images.tiny.build import SOURCES, lay_out_root

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("gcc"), reason="needs root and a C compiler"),
]
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
LEASE = {"interface": "eth0", "ip": "10.7.0.5", "mask": "24", "router": "10.7.0.1", "dns": "10.7.0.1", "mtu": "1400"}
# The machine's own CPUs and disks are seen, and nothing of them can be changed.
MOUNTS = """
mount -t tmpfs run $ROOT/run && mount -t proc proc $ROOT/proc && mount -t sysfs -o ro sys $ROOT/sys
mount --bind /dev/null $ROOT/dev/null && ip link set lo up && echo ready && exec sleep 3600
"""


class Tiny:
    """tiny's root, without a kernel of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._started: list[subprocess.Popen[str]] = []
        (root / "dev/null").touch()
        (root / "dev/console").touch()
        walls = ["unshare", "--mount", "--net", "--uts", "--pid", "--fork", "--kill-child"]
        self._holder = subprocess.Popen(
            [*walls, "sh", "-ec", MOUNTS], env={**os.environ, "ROOT": str(root)}, stdout=subprocess.PIPE, text=True
        )
        assert self._holder.stdout is not None and self._holder.stdout.readline() == "ready\n"
        children = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children").read_text().split()
        self._enter = ["nsenter", "--target", children[0], "--mount", "--net", "--uts", "--pid"]

    def outside(self, *words: str) -> str:
        """With this machine's programs, in tiny's network."""
        done = subprocess.run([*self._enter, *words], capture_output=True, text=True, timeout=20)
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout

    def start(self, *words: str, **variables: str) -> subprocess.Popen[str]:
        inside = [*self._enter, "chroot", str(self.root), *words]
        process = subprocess.Popen(inside, env={"PATH": PATH, **variables}, text=True, stdout=subprocess.PIPE)
        self._started.append(process)
        return process

    def run(self, *words: str, **variables: str) -> tuple[str, int]:
        process = self.start(*words, **variables)
        said, _ = process.communicate(timeout=30)
        return said, process.returncode

    def lease(self, what: str = "bound", **variables: str) -> int:
        """What udhcpc does with an answer: these variables, and those of a good one."""
        return self.run("/bin/weft-devices", what, **{**LEASE, **variables})[1]

    def plug(self, number: int = 0) -> None:
        """A NIC of this number, whose MAC address is always the same."""
        link = ["ip", "link", "add", f"eth{number}", "address", f"02:00:00:00:00:{number:02x}", "type", "veth"]
        self.outside(*link, "peer", "name", f"peer{number}")
        self.outside("ip", "addr", "add", f"10.{number}.0.1/24", "dev", f"peer{number}")
        self.outside("ip", "link", "set", f"peer{number}", "up")

    def serve(self, *numbers: int) -> None:
        """A DHCP server that answers immediately, in the networks of these NICs, also of one that comes later. A second one for
        the same network would refuse what the first one grants."""
        words = [
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--port=0",
            "--user=root",
            "--leasefile-ro",
            "--no-ping",
        ]
        words += ["--dhcp-authoritative", "--bind-dynamic", "--domain=shop.weft", "--dhcp-option=option:mtu,1400"]
        for n in numbers:
            words += [f"--interface=peer{n}", f"--dhcp-range=set:n{n},10.{n}.0.5,10.{n}.0.5,255.255.255.0,120"]
            words += [f"--dhcp-option=tag:n{n},option:dns-server,10.{n}.0.1,9.9.9.9"]
        server = subprocess.Popen(
            [*self._enter, "dnsmasq", *words, "--log-facility=-"], stderr=subprocess.PIPE, text=True
        )
        assert server.stderr is not None
        while "DHCP, IP range" not in (line := server.stderr.readline()):
            assert line, "the server has ended"

    def addresses(self, nic: str = "eth0") -> list[str]:
        shown = json.loads(self.outside("ip", "-j", "-4", "addr", "show", "dev", nic))
        return [f"{a['local']}/{a['prefixlen']} {a.get('broadcast')}" for link in shown for a in link["addr_info"]]

    def ways_out(self) -> list[tuple[str, str, int]]:
        shown = json.loads(self.outside("ip", "-j", "route", "show", "default"))
        return [(one["dev"], one["gateway"], one["metric"]) for one in shown]

    def mtu(self) -> int:
        return int(json.loads(self.outside("ip", "-j", "link", "show", "dev", "eth0"))[0]["mtu"])

    def read(self, name: str) -> str:
        return self.run("cat", name)[0]

    def has(self, name: str) -> bool:
        return self.run("test", "-e", name)[1] == 0

    def clients(self) -> int:
        return sum("udhcpc" in line for line in self.run("ps")[0].splitlines())

    def close(self) -> None:
        for process in (self._holder, *self._started):  # nsenter stands still for ever once what it started was stopped
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("devices")
    compile_program(SOURCES / "devices.c", folder / "devices")
    return folder


@pytest.fixture
def tiny(programs: Path, tmp_path: Path) -> Iterator[Tiny]:
    lay_out_root(tmp_path / "root", programs / "devices", programs / "devices")
    tiny = Tiny(tmp_path / "root")
    yield tiny
    tiny.close()


def until(true: Callable[[], bool], seconds: float = 20) -> float:
    began = time.monotonic()
    while not true():
        assert time.monotonic() < began + seconds
        time.sleep(0.02)
    return time.monotonic() - began


def test_a_lease_is_applied_and_a_renewal_leaves_the_address_as_it_is(tiny: Tiny) -> None:
    tiny.plug()
    tiny.outside("ip", "addr", "add", "10.1.1.1/24", "dev", "eth0")
    tiny.outside("ip", "addr", "add", "10.1.1.2/24", "dev", "eth0")
    assert tiny.lease("deconfig") == 0 and tiny.addresses() == []
    assert tiny.lease(domain="shop.weft", dns="10.7.0.1 9.9.9.9") == 0
    assert tiny.addresses() == ["10.7.0.5/24 10.7.0.255"] and tiny.mtu() == 1400
    assert tiny.ways_out() == [("eth0", "10.7.0.1", 100)]
    assert tiny.read("/etc/resolv.conf") == "search shop.weft\nnameserver 10.7.0.1\nnameserver 9.9.9.9\n"
    assert (tiny.root / "dev/console").read_text() == "eth0: 10.7.0.5/24\n"
    tiny.outside("ip", "addr", "add", "10.1.1.1/24", "dev", "eth0")  # a person's
    assert tiny.lease("renew", router="10.7.0.2") == 0
    assert tiny.addresses() == ["10.7.0.5/24 10.7.0.255", "10.1.1.1/24 None"]
    assert tiny.ways_out() == [("eth0", "10.7.0.2", 100)] and tiny.read("/etc/resolv.conf") == "nameserver 10.7.0.1\n"
    assert tiny.lease("renew", ip="10.7.0.6", mask="31", router="") == 0
    assert tiny.addresses() == ["10.7.0.6/31 None"] and tiny.ways_out() == []
    assert tiny.lease("leasefail") == tiny.lease("nak") == 0 and tiny.addresses() == ["10.7.0.6/31 None"]


def test_the_name_servers_of_all_nics_stand_in_one_file_each_once(tiny: Tiny) -> None:
    tiny.plug(0), tiny.plug(3)
    assert tiny.lease("deconfig") == tiny.lease("deconfig", interface="eth3") == 0
    assert tiny.lease(interface="eth3", ip="10.3.0.5", router="10.3.0.1", domain="b.weft", dns="10.3.0.1 9.9.9.9") == 0
    assert tiny.lease(domain="a.weft", dns="10.7.0.1 9.9.9.9") == 0
    lines = ["search a.weft", "nameserver 10.7.0.1", "nameserver 9.9.9.9", "search b.weft", "nameserver 10.3.0.1"]
    assert tiny.read("/etc/resolv.conf").splitlines() == lines
    assert sorted(tiny.ways_out()) == [("eth0", "10.7.0.1", 100), ("eth3", "10.3.0.1", 103)]


@pytest.mark.parametrize(
    "ip", ["", "10.7.0", "10.7.0.5/8", "10.7.0.5\n", "127.0.0.1", "224.0.0.1", "0.0.0.0", "9" * 5000]
)
def test_a_lease_without_an_address_that_a_nic_may_have_changes_nothing(tiny: Tiny, ip: str) -> None:
    tiny.plug()
    assert tiny.lease() == 0
    before = tiny.addresses(), tiny.ways_out(), tiny.read("/etc/resolv.conf")
    assert (
        tiny.lease(ip=ip) == 1
        and tiny.lease(mask=ip) == 1
        and tiny.lease(mask="33") == 1
        and tiny.lease(mask="-1") == 1
    )
    assert (tiny.addresses(), tiny.ways_out(), tiny.read("/etc/resolv.conf")) == before


def test_what_a_server_says_becomes_lines_of_one_kind_and_so_many(tiny: Tiny) -> None:
    tiny.plug()
    for domain in ("a\nnameserver 6.6.6.6", "a\roptions debug", "a;b", "a\x1b[2J", "ä.weft", "x" * 256, "x" * 100_000):
        assert tiny.lease(domain=domain) == 0
        assert tiny.read("/etc/resolv.conf") == "nameserver 10.7.0.1\n"
    assert tiny.lease(domain="x" * 255) == 0
    assert tiny.read("/etc/resolv.conf") == f"search {'x' * 255}\nnameserver 10.7.0.1\n"
    servers = [
        "9.9.9",
        "options",
        "6.6.6.6;",
        "::1",
        "1" * 100_000,
        *(f"10.200.200.{number}" for number in range(100, 200)),
    ]
    assert tiny.lease(dns=" ".join(servers), domain="x" * 255) == 0
    assert tiny.read("/etc/resolv.conf").splitlines()[1:] == [
        f"nameserver 10.200.200.{number}" for number in range(100, 108)
    ]
    for router in ("10.7.0.1.1", "$(reboot)", "9" * 100_000, "8.8.8.8"):  # the last is nowhere near
        assert tiny.lease(router=router) == 0 and tiny.ways_out() == []
    for mtu in ("-1", "1e3", "99999999999999999999", "1400 ", "0", "1"):
        assert tiny.lease(mtu=mtu) == 0 and tiny.mtu() == 1400
    for name in ("", ".", "..", "lo", "eth", "eth0/../eth0", "../../etc/passwd", "eth0 ", "eth" + "0" * 5000):
        assert tiny.lease(interface=name) == 1
    assert (tiny.root / "dev/console").read_text().replace("eth0: 10.7.0.5/24\n", "") == ""


def test_a_nic_that_is_plugged_in_asks_and_one_that_is_pulled_out_leaves_nothing(tiny: Tiny) -> None:
    tiny.outside("hostname", "guest")
    daemon = tiny.start("weft-devices")
    until(lambda: tiny.has("/run/network-tried"))
    tiny.serve(0)
    for _ in range(2):
        tiny.plug()
        until(lambda: tiny.addresses() == ["10.0.0.5/24 10.0.0.255"])
        until(lambda: tiny.has("/run/resolv.eth0"))
        assert tiny.mtu() == 1400 and tiny.ways_out() == [("eth0", "10.0.0.1", 100)]
        asked = tiny.run("ps", "-o", "args")[0]
        options = "-f -i eth0 -p /run/nic.eth0/pid -s /bin/weft-devices -x hostname:guest -O mtu -t 4 -T 1 -A 2"
        assert asked.count("udhcpc ") == 1 and f"udhcpc {options}\n" in asked
        tiny.outside("ip", "link", "del", "eth0")
        until(lambda: not tiny.has("/run/nic.eth0") and not tiny.has("/run/resolv.eth0") and tiny.clients() == 0)
    assert daemon.poll() is None


def test_only_nics_of_a_guest_are_asked_for(tiny: Tiny) -> None:
    tiny.start("weft-devices")
    until(lambda: tiny.has("/run/network-tried"))
    tiny.outside("ip", "link", "add", "br0", "type", "bridge")
    tiny.outside("ip", "link", "add", "ethernet", "type", "veth", "peer", "name", "veth0")
    tiny.plug(7)
    until(lambda: tiny.has("/run/nic.eth7/pid"))
    assert tiny.run("ls", "/run")[0].split() == ["network-tried", "nic.eth7"] and tiny.clients() == 1


def test_events_that_nobody_could_hold_are_made_up_for_by_a_look_around(tiny: Tiny) -> None:
    tiny.plug(1)
    daemon = tiny.start("weft-devices")
    until(lambda: tiny.has("/run/nic.eth1/pid"))
    pid = tiny.run("pidof", "weft-devices")[0].strip()
    tiny.run("kill", "-STOP", pid)
    flood = [f"link {what} flood type veth peer name other" for _ in range(300) for what in ("add", "del")]
    (tiny.root / "flood").write_text("\n".join([*flood, "link del eth1", "link add eth0 type veth peer name peer0"]))
    tiny.outside("ip", "-b", str(tiny.root / "flood"))
    tiny.run("kill", "-CONT", pid)
    until(lambda: tiny.has("/run/nic.eth0/pid") and not tiny.has("/run/nic.eth1"))
    until(lambda: tiny.clients() == 1)
    assert daemon.poll() is None


def test_commands_wait_three_seconds_for_a_nic_that_gets_no_answer_and_not_at_all_without_one(tiny: Tiny) -> None:
    tiny.start("weft-devices")
    assert until(lambda: tiny.has("/run/network-tried")) < 2
    tiny.run("killall", "weft-devices")
    tiny.run("rm", "/run/network-tried")
    tiny.plug(0), tiny.plug(1)
    tiny.serve(1)
    began = time.monotonic()
    tiny.start("weft-devices")
    until(lambda: tiny.has("/run/resolv.eth1"))
    until(lambda: tiny.has("/run/network-tried"))
    waited = time.monotonic() - began
    assert 2.9 < waited < 5 and not tiny.has("/run/resolv.eth0")


def test_a_nic_that_is_gone_is_waited_for_no_longer(tiny: Tiny) -> None:
    tiny.plug()
    began = time.monotonic()
    tiny.start("weft-devices")
    until(lambda: tiny.has("/run/nic.eth0/pid"))
    tiny.outside("ip", "link", "del", "eth0")
    until(lambda: tiny.has("/run/network-tried"))
    assert time.monotonic() - began < 2.9


def test_commands_go_as_soon_as_each_nic_has_its_lease(tiny: Tiny) -> None:
    tiny.plug(0), tiny.plug(1)
    tiny.serve(0, 1)
    tiny.start("weft-devices")
    until(lambda: tiny.has("/run/network-tried"))
    assert tiny.has("/run/resolv.eth0") and tiny.has("/run/resolv.eth1")
    lines = ["search shop.weft", "nameserver 10.0.0.1", "nameserver 9.9.9.9", "nameserver 10.1.0.1"]
    assert tiny.read("/etc/resolv.conf").splitlines() == lines


def test_what_lies_in_start_d_is_started_if_it_is_a_program(tiny: Tiny) -> None:
    folder = tiny.root / "etc/weft/start.d"
    folder.mkdir(parents=True)
    (folder / "text").write_text("#!/bin/sh\necho text >>/root/began\n")
    (tiny.root / "etc/rc").rename(tiny.root / "etc/rc.real")
    (tiny.root / "etc/rc").write_text("echo rc >>/root/began; . /etc/rc.real\n")
    tiny.start("weft-devices")
    until(lambda: tiny.has("/run/network-tried"))
    assert not tiny.has("/root/began")
    tiny.run("killall", "weft-devices")
    (folder / "program").write_text("#!/bin/sh\necho program >>/root/began; echo said\n")
    (folder / "program").chmod(0o755)
    tiny.start("weft-devices")
    until(lambda: tiny.read("/root/began") == "rc\nprogram\n" and tiny.read("/var/log/program.log") == "said\n")


def test_a_machine_that_goes_on_as_another_one_asks_anew_once_it_has_a_carrier(tiny: Tiny) -> None:
    tiny.plug(), tiny.serve(0)
    tiny.start("weft-devices")
    until(lambda: tiny.has("/run/resolv.eth0"))
    old = tiny.read("/run/nic.eth0/pid")
    tiny.outside("ip", "link", "set", "peer0", "down")
    tiny.outside("hostname", "twin")
    assert tiny.run("/usr/local/lib/weft/renewed", timeout="") == ("", 0)
    assert tiny.addresses() == [] and not tiny.has("/run/resolv.eth0") and tiny.clients() == 0
    time.sleep(0.3)
    assert not tiny.has("/run/nic.eth0")
    tiny.outside("ip", "link", "set", "peer0", "up")
    until(lambda: tiny.addresses() == ["10.0.0.5/24 10.0.0.255"])
    assert tiny.read("/run/nic.eth0/pid") != old and "hostname:twin" in tiny.run("ps", "-o", "args")[0]
