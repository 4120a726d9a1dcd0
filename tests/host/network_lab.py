"""Nodes, a fabric and an outside made of network namespaces, for tests of the bridge driver.

::

    guest ─tap─ n1 ─┐
    guest ─tap─ n2 ─┤ under0 (fabric, 10.99.0.254) ── outside (203.0.113.2)
    guest ─tap─ n3 ─┘

Every name carries a random tag, so several labs live side by side. ``close`` removes all of it.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from weft.contracts.driver.host import Capacity, Host
from weft.contracts.driver.network import (
    Endpoint,
    Filter,
    Forward,
    Held,
    NetworkProbe,
    NetworkState,
    Port,
    SeenFlow,
    Segment,
)
from weft.contracts.proxy import EndpointCount, Proxy
from weft.objects.errors import error_from_dict

HERE = Path(__file__).parent
OUTSIDE = "203.0.113.2"
LEASE_SCRIPT = """#!/bin/sh
[ "$1" = bound ] || [ "$1" = renew ] || exit 0
ip addr replace "$ip/$mask" dev "$interface"
ip link set dev "$interface" mtu "${mtu:-1500}"
[ -z "$router" ] || ip route replace default via "$router"
[ -z "$dns" ] || { for server in $dns; do echo "nameserver $server"; done; echo "search $domain"; } > "$RESOLV"
"""
# What an HTTP client costs least: the static busybox's own can't resolve names.
FETCH = """
import socket, sys
host, port, path = sys.argv[1:]
with socket.create_connection((host, int(port)), 5) as link:
    link.sendall(f"GET {path} HTTP/1.0\\r\\nHost: {host}\\r\\n\\r\\n".encode())
    got = b"".join(iter(lambda: link.recv(65536), b""))
head, body = got.split(b"\\r\\n\\r\\n", 1)
sys.exit(head.decode()) if b" 200 " not in head else sys.stdout.buffer.write(body)
"""


def fetch_command(host: str, port: int = 80, path: str = "/") -> list[str]:
    return [sys.executable, "-S", "-E", "-c", FETCH, host, str(port), path]


class Guest:
    """A namespace behind a tap."""

    def __init__(self, lab: Lab, name: str, node: Node, tap: str, mac: str) -> None:
        self.namespace = f"{lab.tag}{name}"
        self.resolv = lab.folder / f"{self.namespace}.resolv"
        self.resolv.write_text("")
        self._lab = lab
        lab.add_namespace(self.namespace)
        self._node = node
        self.add_nic(tap, mac, "eth0")

    def add_nic(self, tap: str, mac: str, name: str = "eth1") -> None:
        program = [sys.executable, "-S", "-E", HERE / "network_guest.py"]
        command = [*program, self._node.namespace, tap, self.namespace, mac, name]
        self._copier = self._lab.start(command, stdin=subprocess.PIPE)

    def tell_nic(self, *words: str) -> None:
        """An order to what copies its newest NIC's frames."""
        assert self._copier.stdin and self._copier.stdout
        self._copier.stdin.write(" ".join(words) + "\n")
        self._copier.stdin.flush()
        assert self._copier.stdout.readline() == "ready\n"

    def lease(self, nic: str = "eth0", *also: str) -> str:
        """Ask for an address as a guest does, and take it."""
        script = self._lab.folder / "lease.sh"
        asked = [
            "busybox",
            "udhcpc",
            "-i",
            nic,
            "-n",
            "-q",
            "-f",
            "-t",
            "5",
            "-T",
            "1",
            "-s",
            str(script),
            "-O",
            "mtu",
            *also,
        ]
        return self.run(*asked)

    def run(self, *command: str, check: bool = True, timeout_seconds: float = 20) -> str:
        """Run a command in the guest, with the guest's own resolver."""
        done = self.attempt(*command, timeout_seconds=timeout_seconds)
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def attempt(self, *command: str, timeout_seconds: float = 20) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self._enter(*command),
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            env={**os.environ, "RESOLV": str(self.resolv)},
        )

    def reaches(self, address: str) -> bool:
        return self.attempt("busybox", "ping", "-c", "1", "-W", "2", address).returncode == 0

    def serve(self, text: str, port: int = 80) -> None:
        """Answer HTTP on a port with a text."""
        folder = self._lab.folder / f"{self.namespace}.www"
        folder.mkdir(exist_ok=True)
        (folder / "index.html").write_text(text)
        (folder / "big").write_text("0123456789abcdef" * (1 << 16))
        self._lab.start(self._enter("busybox", "httpd", "-f", "-p", str(port), "-h", str(folder)), wait=False)

    def fetch(self, host: str, port: int = 80, path: str = "/") -> str:
        return self.run(*fetch_command(host, port, path))

    def _enter(self, *command: str) -> list[str]:
        bind = f'mount --bind {self.resolv} /etc/resolv.conf; exec "$@"'
        return ["nsenter", f"--net=/run/netns/{self.namespace}", "unshare", "--mount", "sh", "-c", bind, "sh", *command]


class Node:
    """The driver in a node's namespaces, as a NetworkDriver."""

    name = "bridge"

    def __init__(self, lab: Lab, number: int, most_connections: int = 0) -> None:
        self.number = number
        self.address = f"10.99.0.{number}"
        self.namespace = f"{lab.tag}n{number}"
        self.seconds = 0.0  # what the last call took inside the node
        self._lab = lab
        folder = lab.folder / f"n{number}"
        self.host = Host(
            node=f"n{number}",
            node_uid=f"uid{number}",
            state_dir=str(folder / "state"),
            run_dir=str(folder / "run"),
            link_prefix=f"w{number}",
            underlay_address=self.address,
            underlay_link="up0",
            cgroup=f"weft/{lab.tag}/n{number}",
            capacity=Capacity(cpu=1, memory_bytes=1 << 30, disk_bytes=1 << 30),
        )
        lab.add_namespace(self.namespace)
        lab.shell(f"""
            ip -n {lab.fabric} link add f{number} type veth peer name up0 netns {self.namespace}
            ip -n {lab.fabric} link set f{number} master under0 up
            ip -n {self.namespace} addr add {self.address}/24 dev up0
            ip -n {self.namespace} link set up0 up
            ip -n {self.namespace} route add default via 10.99.0.254
        """)
        self._process = lab.start(
            [
                *["nsenter", f"--net=/run/netns/{self.namespace}", "unshare", "--mount", "--pid", "--fork"],
                *["--kill-child", "--mount-proc", sys.executable, HERE / "network_node.py"],
                msgspec.json.encode(self.host).decode(),
                str(most_connections),
            ],
            stdin=subprocess.PIPE,
        )

    @property
    def pid(self) -> int:
        """Of a process that sees the mounts of the driver."""
        return self._process.pid

    def shell(self, script: str, check: bool = True) -> str:
        """Run a script where the driver lives."""
        answer = self._ask("shell", script)
        assert not check or answer["code"] == 0, f"{script}: {answer['value']}{answer['problem']}"
        return str(answer["value"])

    def meddle(self, script: str) -> None:
        """Run a script where the driver lives, between its next look at links and what it makes of it."""
        self._ask("meddle", script)

    def restart(self) -> None:
        """A new driver that remembers nothing."""
        self._ask("restart")

    def plug_guest(self, name: str, port: Port) -> Guest:
        answer = self._ask("plug", msgspec.to_builtins(port))
        return Guest(self._lab, name, self, str(answer["value"]), port.mac)

    def fetch(self, host: str, port: int = 80) -> str:
        return self._lab.fetch(self.namespace, host, port)

    def dump(self) -> str:
        """All the kernel holds of the node that the driver could change, without what changes by itself."""
        return self.shell(r"""
            look() {
                ip -j -d addr show | sed -E 's/"(gc|hello|tcn|topology_change)_timer":[0-9.]+,?//g; s/"tentative":true,//g'
                ip -j route show; bridge -j fdb show; cat /proc/sys/net/ipv4/ip_forward
                nft -s -a list ruleset | sed -zE 's/\n\s*elements = \{[^}]*(limit rate|ct count)[^}]*\}//g'
            }
            look
            for name in $(ls /run/netns); do
                nsenter --net=/run/netns/$name bash -c "$(declare -f look); look"
                for pid in $(ip netns pids $name); do echo $pid $(readlink /proc/$pid/exe); done
            done
            """)

    async def probe(self) -> NetworkProbe:
        return msgspec.convert(self._ask("probe")["value"], NetworkProbe)

    async def ensure_segment(self, segment: Segment) -> None:
        self._ask("ensure_segment", msgspec.to_builtins(segment))

    async def remove_segment(self, segment_id: str) -> None:
        self._ask("remove_segment", segment_id)

    async def plug(self, port: Port) -> str:
        return str(self._ask("plug", msgspec.to_builtins(port))["value"])

    async def unplug(self, port_id: str) -> None:
        self._ask("unplug", port_id)

    async def ensure_forwards(self, forwards: list[Forward]) -> None:
        self._ask("ensure_forwards", msgspec.to_builtins(forwards))

    async def find_held(self) -> list[Held]:
        return msgspec.convert(self._ask("find_held")["value"], list[Held])

    async def find_addresses(self) -> list[str]:
        return msgspec.convert(self._ask("find_addresses")["value"], list[str])

    async def ensure_refused(self, cidrs: list[str], hosts: list[str]) -> None:
        self._ask("ensure_refused", [cidrs, hosts])

    async def ensure_filters(self, filters: list[Filter]) -> None:
        self._ask("ensure_filters", msgspec.to_builtins(filters))

    def switch(self, port: Port, node_address: str) -> None:
        self._ask("switch", [msgspec.to_builtins(port), node_address])

    def list_flows(self, port: Port) -> list[str]:
        return msgspec.convert(self._ask("list", msgspec.to_builtins(port))["value"], list[str])

    def read_refused(self, port: Port) -> list[SeenFlow]:
        return msgspec.convert(self._ask("read_refused", [port.id])["value"], list[SeenFlow])

    def read_fill(self) -> tuple[int, int]:
        return msgspec.convert(self._ask("read_fill")["value"], tuple[int, int])

    def seed_flows(self, port: Port, lines: list[str]) -> None:
        self._ask("seed", [msgspec.to_builtins(port), lines])

    def count_older(self, segment_id: str, address: str) -> int:
        return int(self._ask("count_older", [segment_id, address])["value"])

    async def state(self) -> NetworkState:
        return msgspec.convert(self._ask("state")["value"], NetworkState)

    async def heal(self) -> list[str]:
        return msgspec.convert(self._ask("heal")["value"], list[str])

    async def close(self) -> None:
        self._ask("close")

    def name_router(self, segment_id: str) -> str:
        return str(self._ask("name_router", segment_id)["value"])

    def ensure_proxy(self, proxy: Proxy) -> None:
        self._ask("proxy.ensure", msgspec.to_builtins(proxy))

    def remove_proxy(self, id: str) -> None:
        self._ask("proxy.remove", id)

    def read_proxy(self, id: str) -> list[EndpointCount]:
        return msgspec.convert(self._ask("proxy.read", id)["value"], list[EndpointCount])

    def find_ended_proxies(self) -> list[str]:
        return list(self._ask("proxy.find_ended")["value"])

    def _ask(self, method: str, argument: Any = None) -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(msgspec.json.encode({"method": method, "argument": argument}).decode() + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"node {self.number} died during {method}"
        answer: dict[str, Any] = msgspec.json.decode(line)
        if "error" in answer:
            raise error_from_dict(answer["error"])
        self.seconds = answer.get("seconds", 0.0)
        self.programs = answer.get("programs", [])  # that the driver started for it
        return answer


class Lab:
    def __init__(self, nodes: int, most_connections: int = 0) -> None:
        self.tag = "w" + secrets.token_hex(2)
        self.folder = Path(tempfile.mkdtemp(prefix="weft-net-"))
        self.fabric, self.outside = f"{self.tag}fab", f"{self.tag}out"
        self._namespaces: list[str] = []
        self._processes: list[subprocess.Popen[str]] = []
        self.nodes: list[Node] = []
        try:
            (self.folder / "lease.sh").write_text(LEASE_SCRIPT)
            (self.folder / "lease.sh").chmod(0o755)
            self.add_namespace(self.fabric)
            self.add_namespace(self.outside)
            # Its own address: else it has its ports' lowest, another one once a test adds a port, and is lost to the nodes.
            self.shell(f"""
                ip -n {self.fabric} link add under0 address 02:00:00:00:00:fe type bridge stp_state 0
                ip -n {self.fabric} link set under0 up
                ip -n {self.fabric} addr add 10.99.0.254/24 dev under0
                ip -n {self.fabric} link add out0 type veth peer name eth0 netns {self.outside}
                ip -n {self.fabric} addr add 203.0.113.1/24 dev out0
                ip -n {self.fabric} link set out0 up
                ip -n {self.outside} addr add {OUTSIDE}/24 dev eth0
                ip -n {self.outside} link set eth0 up
                ip -n {self.outside} route add 10.99.0.0/24 via 203.0.113.1
                ip netns exec {self.fabric} sysctl -qw net.ipv4.ip_forward=1
            """)
            self.nodes = [Node(self, number, most_connections) for number in range(1, nodes + 1)]
        except BaseException:
            self.close()
            raise

    def add_namespace(self, name: str) -> None:
        self._namespaces.append(name)
        self.shell(f"ip netns add {name}; ip -n {name} link set lo up")

    def shell(self, script: str) -> str:
        done = subprocess.run(["bash", "-e", "-c", script], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{script}: {done.stdout}{done.stderr}"
        return done.stdout

    def fetch(self, namespace: str, host: str, port: int = 80) -> str:
        command = ["nsenter", f"--net=/run/netns/{namespace}", *fetch_command(host, port)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
        assert done.returncode == 0, f"{host}:{port} from {namespace}: {done.stderr}"
        return done.stdout

    def serve(self, namespace: str, text: str, port: int = 80, address: str = "0.0.0.0") -> subprocess.Popen[str]:
        folder = self.folder / f"{namespace}.{port}.www"
        folder.mkdir(exist_ok=True)
        (folder / "index.html").write_text(text)
        enter = ["nsenter", f"--net=/run/netns/{namespace}"]
        return self.start([*enter, "busybox", "httpd", "-f", "-p", f"{address}:{port}", "-h", str(folder)], wait=False)

    def start(self, command: list[Any], wait: bool = True, **options: Any) -> subprocess.Popen[str]:
        """Start a process that ends with the lab; with ``wait``, return when it says it is ready."""
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)
        self._processes.append(process)
        if wait:
            assert process.stdout and process.stdout.readline() == "ready\n", f"{command} didn't start"
        return process

    def close(self) -> None:
        for process in reversed(self._processes):
            process.kill()
            process.communicate()
        for name in self._namespaces:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
        shutil.rmtree(self.folder, ignore_errors=True)


def make_segment(
    lab_number: int, name: str, nodes: dict[str, Node], cidr: str = "10.20.0.0/24", **over: Any
) -> Segment:
    """A segment with one endpoint per entry of ``nodes``, .11 upwards in that order."""
    start = cidr.rsplit(".", 1)[0]
    endpoints = [
        Endpoint(
            mac=f"52:54:00:00:{lab_number:02x}:{at:02x}",
            address=f"{start}.{at}",
            name=guest,
            node_address=node.address,
        )
        for at, (guest, node) in enumerate(nodes.items(), 11)
    ]
    values: dict[str, Any] = {
        "id": f"seg{lab_number:07d}",
        "name": name,
        "vni": 100 + lab_number,
        "cidr": cidr,
        "gateway": f"{start}.1",
        "mtu": 1450,
        "domain": f"{name}.weft",
        "nat": True,
        "endpoints": endpoints,
    }
    return Segment(**{**values, **over})


def make_port(segment: Segment, name: str) -> Port:
    """The port of a segment's endpoint."""
    endpoint = next(e for e in segment.endpoints if e.name == name)
    return Port(
        id=f"p{segment.id[-2:]}{name:0>7}",
        segment_id=segment.id,
        mac=endpoint.mac,
        address=endpoint.address,
        hostname=name,
    )
