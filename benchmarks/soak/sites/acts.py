"""What befalls two sites, done to their processes and lines; and what people do there meanwhile."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import msgspec
from tests.cluster.cluster import Cluster

from benchmarks.soak.sites.eyes import Eyes
from benchmarks.soak.sites.faults import BY_PEOPLE, LEFT, Fault
from benchmarks.soak.sites.figures import MOST_HEAL
from benchmarks.soak.sites.place import Lines, Process, Site, Witness, dig, find_phase, heal, send_signal
from benchmarks.soak.travellers import Broken
from weft.objects.errors import WeftError

AUTOMATIC_VMS, PLANNED_VM = ("db", "web"), "desk"
VMS = (*AUTOMATIC_VMS, PLANNED_VM)
SOONER = 6  # a hand-over takes seconds: what comes besides comes so much sooner than during a fault


class Acts:
    """``ordered``: what people did to a VM in this round, by its name. ``promised``: of one that they promoted, when, and the loss
    that was stated, in seconds. ``problems``: what they were refused for too long."""

    def __init__(self, cluster: Cluster, sites: tuple[Site, Site], witness: Witness, eyes: Eyes) -> None:
        self.cluster, self.witness, self.eyes = cluster, witness, eyes
        self.by_name = {site.name: site for site in sites}
        self.lines = Lines(sites, witness)
        self.ordered: dict[str, str] = {}
        self.promised: dict[str, tuple[float, float]] = {}
        self.problems: list[str] = []
        self.killed = Counter[str]()

    def find_home(self, name: str) -> Site:
        """Where its newest guest was heard."""
        with self.eyes.lock:
            newest = self.eyes.chronicle.find_newest(name)
        return self.by_name[newest.site if newest is not None else next(iter(self.by_name))]

    def perform(self, fault: Fault, home: Site) -> None:
        """All of it, to its end; what was killed is begun again. Raises Broken if it can't be."""
        self.ordered, self.promised = {}, {}
        if fault.kind in BY_PEOPLE:
            self._play_people(fault, home)
        else:
            self._befall(fault, home)

    def _befall(self, fault: Fault, home: Site) -> None:
        other, site = self.by_name[home.other], home if fault.where == LEFT else self.by_name[home.other]
        names = {"home": home.name, "other": other.name}
        with ExitStack() as undo:
            match fault.kind:
                case "cut off":
                    ways = [(home.name, "witness"), (home.name, other.name), (other.name, home.name)]
                    undo.enter_context(self.lines.cut(ways, fault.how))
                case "line":
                    ways = [(names[source], names[target]) for source, target in fault.ways]
                    undo.enter_context(self.lines.cut(ways, fault.how))
                case "frozen":
                    undo.enter_context(_frozen([*home.list_processes("server"), *home.list_processes("agents")]))
                case "all frozen":
                    undo.enter_context(_frozen(home.list_processes("all")))
                case "killed":
                    undo.enter_context(self._killed(home))
                case "witness":
                    self._stop_witness(fault.how)
                    undo.callback(self._mend_witness)
                case "one process":
                    processes = site.list_processes(fault.what)
                    if fault.how == "freeze":
                        undo.enter_context(_frozen(processes))
                    else:
                        self._kill(processes, fault.what)
            self._wait(fault, home)
        if trouble := heal(self.cluster):
            raise Broken(trouble)

    def _wait(self, fault: Fault, home: Site) -> None:
        """To its end, with what comes besides."""
        began = time.monotonic()
        people: threading.Thread | None = None
        if fault.kind == "all frozen" and self.find_home(PLANNED_VM) is home:
            people = threading.Thread(
                target=self._promote_by_plan, args=(self.by_name[home.other], began + fault.seconds)
            )
            people.start()
        self._play_extras(fault, home, began)
        time.sleep(max(0.0, began + fault.seconds - time.monotonic()))
        if people is not None:
            people.join()

    def _play_extras(self, fault: Fault, home: Site, began: float, sooner: float = 1.0) -> None:
        for extra in sorted(fault.extras):
            time.sleep(max(0.0, began + extra.after / sooner - time.monotonic()))
            if extra.what == "witness":
                self.witness.send(signal.SIGKILL)
                self.witness.begin()
                self.killed["witness"] += 1
                continue
            site = home if extra.where == LEFT else self.by_name[home.other]
            self._kill(site.list_processes(extra.what), extra.what)
            if extra.what == "server":
                heal(self.cluster)

    @contextlib.contextmanager
    def _killed(self, home: Site) -> Iterator[None]:
        """The server once, since nothing begins it again; agents and one of the guard again and again."""
        over = threading.Event()

        def kill() -> None:
            while not over.is_set():
                send_signal(home.list_processes("agents"), signal.SIGKILL)
                send_signal(home.list_processes("guard")[:1], signal.SIGKILL)
                over.wait(1.0)

        self._kill(home.list_processes("server"), "server")
        thread = threading.Thread(target=kill)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _kill(self, processes: list[Process], what: str) -> None:
        self.killed[what] += bool(send_signal(processes, signal.SIGKILL))

    def _stop_witness(self, how: str) -> None:
        self.witness.send(signal.SIGKILL if how == "kill" else signal.SIGSTOP)

    def _mend_witness(self) -> None:
        self.witness.send(signal.SIGCONT)
        self.witness.begin()

    def _promote_by_plan(self, site: Site, until: float) -> None:
        """Once they are let: while the witness still gets word from the other cluster, they aren't."""
        site.run("recovery", "create", PLANNED_VM, "--group", PLANNED_VM)
        while time.monotonic() < until:
            at = time.time()
            done = site.run("recovery", "failover", PLANNED_VM, "-o", "json")
            with contextlib.suppress(ValueError, LookupError, TypeError):
                report = msgspec.json.decode(done.stdout)
                if report["phase"] == "Passed":
                    self.ordered[PLANNED_VM] = "promoted"
                    self.promised[PLANNED_VM] = (at, float(report["vms"][0]["age_seconds"]))
                    break
            time.sleep(2.0)
        site.run("recovery", "delete", PLANNED_VM, "--yes")

    def _play_people(self, fault: Fault, home: Site) -> None:
        """All VMs at once are handed over, or handed over and taken back, while processes are killed."""
        word = "handed over" if fault.kind == "hand-over" else "taken back"
        self.ordered = dict.fromkeys(VMS, word)
        threads = [threading.Thread(target=self._hand_over, args=(name, fault.kind)) for name in VMS]
        for thread in threads:
            thread.start()
        began = time.monotonic()
        self._play_extras(fault, home, began, sooner=SOONER)
        for thread in threads:
            thread.join()

    def _hand_over(self, name: str, kind: str) -> None:
        site = self.find_home(name)
        other = self.by_name[site.other]
        self._insist(
            site,
            "replication",
            "hand-over",
            name,
            done=lambda: find_phase(site.find("replication", name)) == "HandedOver",
        )
        if kind == "hand-over":
            self._insist(
                other, "replica", "promote", name, done=lambda: find_phase(other.find("vm", name)) == "Running"
            )
            return
        self._insist(
            site, "replication", "take-back", name, done=lambda: not dig(site.find("vm", name), "marks", "fenced")
        )
        self._insist(site, "vm", "start", name, done=lambda: find_phase(site.find("vm", name)) == "Running")

    def _insist(self, site: Site, *words: str, done: Callable[[], bool]) -> None:
        """Give the command until it is done: servers are killed meanwhile."""
        ends, said = time.monotonic() + MOST_HEAL, b""
        while time.monotonic() < ends:
            with contextlib.suppress(WeftError, OSError, subprocess.TimeoutExpired):
                if done():
                    return
                said = site.run(*words, "--timeout", "30s", timeout=60).stderr
            time.sleep(0.5)
        self.problems.append(f"{site.name}: weft {' '.join(words)}: {said.decode()[-400:]}")


@contextlib.contextmanager
def _frozen(processes: list[Process]) -> Iterator[None]:
    send_signal(processes, signal.SIGSTOP)
    try:
        yield
    finally:
        send_signal(processes, signal.SIGCONT)
