"""Two clusters on this machine, linked, with a witness between them; what runs of each, and the lines between the three."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from tests.cluster.cluster import Cluster
from tests.cluster.second import THERE
from tests.commands import WEFT

from weft.client import Client
from weft.client.context import find_context
from weft.launch.local.down import WEST, place_second
from weft.launch.local.second.cluster import EAST
from weft.objects.errors import WeftError

GRANTS = ["migrate", "replicate", "take-over"]
WITNESS_AT = {EAST: "127.0.0.2", WEST: "127.0.0.3"}  # where each cluster reaches it, so that each line can be cut alone
ASK_SECONDS = 10.0
CLONE_NEWNET = 0x40000000
# What can be killed or frozen of a cluster: the words of its command line.
PARTS = {
    "server": "weft server",
    "api": "weft server api",
    "controllers": "weft server controllers",
    "gateway": "weft server gateway",
    "agents": "weft agent",
    "guard": "weft.drivers.guard.process",
    "guests": "qemu-system",
    "all": "",
}


class Process(NamedTuple):
    """``start`` tells it from a later one with its number."""

    pid: int
    start: str


class Site:
    """One of both clusters. ``folder`` is its clone; ``commands`` runs commands for it, with ``where`` before them."""

    def __init__(self, name: str, other: str, commands: Cluster, folder: Path, where: tuple[str, ...]) -> None:
        self.name, self.other, self._commands, self._where = name, other, commands, where
        self.state = folder / ".weft"
        self.topology: dict[str, Any] = json.loads((self.state / "cluster.json").read_text())
        self.network = self.topology["underlay"].rpartition(".")[0] + "."
        self.address = f"{self.network}1"
        self.mark = f"weft-{self.topology['id']}"
        self.client = Client(find_context(folder=str(folder), environ={}), timeout_seconds=ASK_SECONDS)

    def run(self, *words: str, timeout: float = 120) -> subprocess.CompletedProcess[bytes]:
        return self._commands.run(*self._where, *words, timeout=timeout)

    def find(self, kind: str, name: str) -> dict[str, Any] | None:
        """None: there is none. Raises WeftError, OSError where it doesn't answer."""
        items = self.client.list(kind).items
        return next((dict(item) for item in items if item["name"] == name), None)

    def list_processes(self, part: str) -> list[Process]:
        """Of that part, but for programs that people started, like ours."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            with suppress(OSError):
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                is_its = any(f"{mark}/" in f"{line}/" for mark in self._list_marks()) and not self._is_of_inner(line)
                if is_its and PARTS[part] in line and "weft.launch.local" not in line:
                    found.append(Process(int(entry.name), _read_start(entry)))
        return found

    def _list_marks(self) -> tuple[str, ...]:
        return str(self.state), f"/run/{self.mark}"

    def _is_of_inner(self, line: str) -> bool:
        """Whether it is of the second cluster, whose folder lies in the first one's."""
        return self.name == EAST and f"{self.state}/{WEST}/" in line


def _read_start(entry: Path) -> str:
    return (entry / "stat").read_text().rpartition(")")[2].split()[19]


def send_signal(processes: Sequence[Process], number: signal.Signals) -> int:
    """To those that are still there; how many."""
    sent = 0
    for one in processes:
        with suppress(OSError):
            if _read_start(Path(f"/proc/{one.pid}")) == one.start:
                os.kill(one.pid, number)
                sent += 1
    return sent


class Witness:
    """The third place: a process of its own."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("0.0.0.0", 0)) as free:
            self.port = int(free.getsockname()[1])
        self._config, self._folder = folder / "witness.yaml", folder / "witness"
        names = ",".join(WITNESS_AT.values())
        self._config.write_text(f"state: {self._folder}\nlisten: 0.0.0.0:{self.port}\nnames: {names}\n")
        self._config.chmod(0o644)
        self._process: subprocess.Popen[bytes] | None = None

    def add(self, site: Site) -> None:
        """Its token, and that it has this witness."""
        words = [WEFT, "witness", "add-site", site.name, "--config", str(self._config)]
        token = subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()
        witness = {"url": f"https://{WITNESS_AT[site.name]}:{self.port}", "peer": site.other}
        spec = {"witness": witness, "values": {"witness": token}, "grants": GRANTS}
        site.client.patch("cluster", site.other, {"spec": spec})

    def begin(self) -> None:
        if self._process is None or self._process.poll() is not None:
            words = [WEFT, "witness", "--config", str(self._config)]
            self._process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def send(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)
            if number == signal.SIGKILL:
                self._process.wait()

    def close(self) -> None:
        self.send(signal.SIGKILL)


class Lines:
    """Those between both clusters, and between each and the witness. Cut with ``drop``, nothing comes back; with ``reset``, a
    connection ends at once."""

    def __init__(self, sites: Sequence[Site], witness: Witness) -> None:
        self._sites = {site.name: site for site in sites}
        self._witness = witness
        self._table = f"weft-soak-{sites[0].topology['id']}"

    @contextmanager
    def cut(self, ways: Sequence[tuple[str, str]], how: str) -> Iterator[None]:
        """``ways``: from which site to which, or to ``witness``."""
        rules = [rule for way in ways for rule in self._list_rules(*way, how)]
        text = "; ".join(rules)
        self._load(f"table inet {self._table} {{ chain in {{ type filter hook input priority -10; {text}; }}; }}")
        try:
            yield
        finally:
            self.close()

    def close(self) -> None:
        subprocess.run(["nft", "delete", "table", "inet", self._table], check=False, capture_output=True)

    def _load(self, rules: str) -> None:
        subprocess.run(["nft", "-f", "-"], input=rules.encode(), check=True)

    def _list_rules(self, source: str, target: str, how: str) -> list[str]:
        verdict = "drop" if how == "drop" else "reject with tcp reset"
        if target == "witness":
            return [f"ip daddr {WITNESS_AT[source]} tcp dport {self._witness.port} {verdict}"]
        there = self._sites[target]
        ports = f"{{ {there.topology['api_port']}, {there.topology['gateway_port']} }}"
        place = f"ip daddr {there.address} tcp dport {ports} {verdict}"
        # The servers are processes of this machine, and reach each other over lo; nodes come from their own network.
        return [f"iif lo {place}", f"ip saddr {self._sites[source].topology['underlay']} {place}"]


def make_sites(cluster: Cluster) -> tuple[Site, Site]:
    west = Path(place_second(str(cluster.folder)))
    return Site(EAST, WEST, cluster, cluster.folder, ()), Site(WEST, EAST, cluster, west, THERE)


class Outside(NamedTuple):
    """A place outside of both clusters, which guests reach: a network namespace. ``sources``: what a site's guests come from."""

    space: str
    address: str
    sources: dict[str, str]


@contextmanager
def make_outside(sites: Sequence[Site]) -> Iterator[Outside]:
    """Guests reach no address of their hosts, so it is none of this machine's own."""
    name, number = f"soak-{sites[0].topology['id']}", sites[0].network.split(".")[2]
    near, far, net = f"198.18.{number}.1", f"198.18.{number}.2", f"198.18.{number}."
    sources = {site.name: f"{net}{10 + place}" for place, site in enumerate(sites)}
    rules = "; ".join(
        f"ip saddr {site.topology['underlay']} ip daddr {far} snat to {sources[site.name]}" for site in sites
    )
    try:
        for words in (
            ["netns", "add", name],
            ["link", "add", f"{name}-h", "type", "veth", "peer", "name", "eth0", "netns", name],
            ["addr", "add", f"{near}/24", "dev", f"{name}-h"],
            ["link", "set", f"{name}-h", "up"],
            ["-n", name, "addr", "add", f"{far}/24", "dev", "eth0"],
            ["-n", name, "link", "set", "eth0", "up"],
            ["-n", name, "link", "set", "lo", "up"],
        ):
            subprocess.run(["ip", *words], check=True)
        # Before the clusters' own masquerade, so that each site can be told.
        table = f"table ip {name} {{ chain out {{ type nat hook postrouting priority srcnat - 10; {rules}; }}; }}"
        subprocess.run(["nft", "-f", "-"], input=table.encode(), check=True)
        yield Outside(name, far, sources)
    finally:
        for words in (["nft", "delete", "table", "ip", name], ["ip", "netns", "del", name]):
            subprocess.run(words, check=False, capture_output=True)
        subprocess.run(["ip", "link", "del", f"{name}-h"], check=False, capture_output=True)


def open_line(outside: Outside) -> socket.socket:
    """A socket for datagrams there."""
    opened: list[socket.socket] = []

    def enter() -> None:  # a thread of its own, which ends in that namespace
        with Path("/run/netns", outside.space).open() as space:
            if ctypes.CDLL(None, use_errno=True).setns(space.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        line = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        line.bind((outside.address, 0))
        opened.append(line)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    return opened[0]


def heal(cluster: Cluster) -> str:
    """Begin again what was killed of both; what is wrong, if it can't be."""
    done = cluster.local("up", clusters="2", timeout=240)
    return "" if done.returncode == 0 else f"make up: {done.stdout[-1500:]}{done.stderr[-1500:]}"


def await_linked(sites: Sequence[Site], seconds: float) -> str:
    """What is wrong with the links after that time; "": nothing."""
    ends, trouble = time.monotonic() + seconds, ""
    while time.monotonic() < ends:
        try:
            found = [(site.find("cluster", site.other) or {}).get("status") or {} for site in sites]
            if all(one.get("phase") == "Linked" for one in found):
                return ""
            trouble = f"links are {[(one.get('phase'), one.get('message')) for one in found]}"
        except (WeftError, OSError) as problem:
            trouble = str(problem)
        time.sleep(0.5)
    return trouble


def find_phase(item: dict[str, Any] | None) -> str:
    return str(dig(item, "status", "phase") or "absent")


def dig(item: dict[str, Any] | None, *names: str) -> Any:
    found: Any = item
    for name in names:
        found = found.get(name) if isinstance(found, dict) else None
    return found


def list_left(sites: tuple[Site, Site]) -> list[str]:
    """What is left of both sites on this machine, once they have ended."""
    left = [f"process {one.pid} of {site.name}" for site in sites for one in site.list_processes("all")]
    left += [f"/run/{site.mark}" for site in sites if Path("/run", site.mark).exists()]
    tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout
    spaces = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    name = f"soak-{sites[0].topology['id']}"
    left += [f"{name} in {text[:300]}" for text in (tables, spaces, links) if name in text]
    for site in sites:
        prefix = site.topology["link_prefix"]
        left += [f"table of {site.name}" for line in tables.splitlines() if site.topology["id"] in line]
        left += [f"link {line.split()[1]}" for line in links.splitlines() if line.split()[1].startswith(prefix)]
        left += [f"namespace {line}" for line in spaces.splitlines() if line.startswith(prefix)]
    return left
