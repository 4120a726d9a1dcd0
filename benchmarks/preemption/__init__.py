"""A best-effort VM gives way to an immediate lease on a full node of the local cluster: how long the winner waits for it.

In turn, on the same node: the VM is suspended by hand, which is what the winner has to wait for at least, and preempted."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable

from benchmarks.measurement import ROOT, Figure, Measurement, spread
from weft.client import Client
from weft.client.context import read_context

ROUNDS = 5
MOST_MORE_SECONDS = 1.0
VICTIM, WINNER = "preempted", "winner"
PATIENCE_SECONDS = 60.0


def measure() -> Measurement:
    client = Client(read_context(ROOT / ".weft" / "context.json"))
    busy = client.get("vm", "hello", project="default")["status"]["node"]
    node = next(one for one in client.list("node").items if one["name"] != busy)
    cores = int(node["report"]["cpu"])
    lab = _Lab(client, node["name"], cores)
    suspends: list[float] = []
    preempts: list[float] = []
    returns: list[float] = []
    kept = 0
    try:
        for _ in range(ROUNDS):
            booted = lab.create(VICTIM, cores - 1, "best-effort")  # a new one: nobody is preempted again and again
            suspends.append(lab.suspend())
            lab.resume()
            preempts.append(lab.preempt())
            returns.append(lab.give_back())
            kept += lab.status(VICTIM).get("boot_id") == booted
            lab.delete(VICTIM)
    finally:
        for name in (WINNER, VICTIM):
            lab.delete(name)
        client.close()
    more = [winner - alone for winner, alone in zip(preempts, suspends, strict=True)]
    return Measurement(
        "preemption",
        f"An idle VM with {cores - 1} cores and 256 MiB on a node of {cores} gives way to an immediate lease: from the request to "
        "create the winner until the winner's QEMU runs, beside the suspension of the same VM by hand, from the request until "
        "its QEMU has ended. Then the winner is deleted, and the VM resumes.",
        [
            Figure(
                "preempt → winner runs",
                spread(preempts, "s", 1, 2),
                f"suspended by hand {spread(suspends, 's', 1, 2)}",
                f"{statistics.median(more):+.2f} s ({min(more):+.2f} to {max(more):+.2f})",
                "≤ +1 s",
                max(more) <= MOST_MORE_SECONDS,
            ),
            Figure("winner deleted → the VM runs again", spread(returns, "s", 1, 2)),
            Figure("came back with its memory (boot id)", f"{kept} of {ROUNDS}", "–", "–", "all", kept == ROUNDS),
        ],
    )


class _Lab:
    """The two VMs on one node."""

    def __init__(self, client: Client, node: str, cores: int) -> None:
        self._client, self._node, self._cores = client, node, cores

    def create(self, name: str, cores: int, lease: str) -> str:
        """A VM that has booted; its boot id."""
        self._request(name, cores, "256M", lease)
        _until(lambda: self.status(name).get("boot_id"), f"vm/{name} has booted")
        return str(self.status(name)["boot_id"])

    def suspend(self) -> float:
        begun = time.monotonic()
        self._client.verb("vm", VICTIM, "suspend", project="default")
        return _until(lambda: not _runs(VICTIM), f"vm/{VICTIM} is suspended", begun)

    def resume(self) -> None:
        _until(lambda: self.status(VICTIM)["phase"] == "Suspended", f"vm/{VICTIM} is known as suspended")
        self._client.verb("vm", VICTIM, "resume", project="default")
        self._wait_until_it_answers()

    def preempt(self) -> float:
        begun = time.monotonic()
        self._request(WINNER, self._cores - 1, "128M", "immediate")
        return _until(lambda: _runs(WINNER), f"vm/{WINNER} runs", begun)

    def give_back(self) -> float:
        begun = time.monotonic()
        self._client.delete("vm", WINNER, project="default")
        seconds = _until(lambda: _runs(VICTIM), f"vm/{VICTIM} runs again", begun)
        self._wait_until_it_answers()
        return seconds

    def status(self, name: str) -> dict[str, object]:
        return dict(self._client.get("vm", name, project="default")["status"])

    def delete(self, name: str) -> None:
        if self._exists(name):
            self._client.delete("vm", name, project="default")
            _until(lambda: not self._exists(name), f"vm/{name} is deleted")

    def _exists(self, name: str) -> bool:
        return any(vm["name"] == name for vm in self._client.list("vm", project="default").items)

    def _wait_until_it_answers(self) -> None:
        _until(lambda: self.status(VICTIM)["phase"] == "Running", f"vm/{VICTIM} runs")
        time.sleep(3.0)  # idle again

    def _request(self, name: str, cores: int, memory: str, lease: str) -> None:
        spec = {"image": "tiny", "memory": memory, "cpu": cores, "node": self._node, "lease": {"mode": lease}}
        self._client.create({"kind": "vm", "name": name, "project": "default", "spec": spec})


def _runs(name: str) -> bool:
    return subprocess.run(["pgrep", "-f", f"qemu-system.*guest={name}[, ]"], capture_output=True).returncode == 0


def _until(holds: Callable[[], object], what: str, begun: float | None = None) -> float:
    """Seconds from ``begun`` until it holds."""
    begun = time.monotonic() if begun is None else begun
    while not holds():
        if time.monotonic() - begun > PATIENCE_SECONDS:
            raise SystemExit(f"after {PATIENCE_SECONDS:g} s it still isn't so that {what}")
        time.sleep(0.02)
    return time.monotonic() - begun
