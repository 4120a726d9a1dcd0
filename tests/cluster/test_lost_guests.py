"""A real VM in a pool that all nodes have, and its node is cut off both ways or one way, or its agent and guard stand still or die;
it returns around the times at which the guest ends there and may start elsewhere. It never runs twice. With times as they are in
use."""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.cluster.cluster import Cluster, until
from tests.cluster.guarded import find_hold, frozen, is_heard
from tests.cluster.guest_eyes import GuestEyes
from tests.cluster.test_bad_days import boot_id, kill, settled
from tests.cluster.test_twin import cut_off
from weft.failover.timing import NODES

pytestmark = [pytest.mark.host, pytest.mark.long]
RUNS = 20
# Since the last report that was answered; after the last one its guest starts elsewhere, or will in a moment.
LENGTHS = (NODES.lease - 1, NODES.promise - 1, NODES.promise + 1, NODES.promise + 4)
FAULTS = (
    ("cut off",),
    ("output dropped",),
    ("input dropped",),
    ("agent stands still",),
    ("agent stands still", "one of the guard stands still"),
    ("both of the guard stand still", "cut off"),
    ("agent is killed", "one of the guard is killed", "cut off"),
)
NAME, VOLUME = "ledger", "ledger-data"
# Notes each start and the time, twice a second: on its root disk, and at the beginning of its volume.
TICKS = (
    "boot=$(cat /proc/sys/kernel/random/boot_id); n=0; while sleep 0.5; do n=$((n+1)); echo $boot $n $(date +%s)"
    " >> /root/ticks; sync; tail -n 1 /root/ticks | dd of=/dev/vdb conv=notrunc,fsync 2>/dev/null; done"
)


@pytest.fixture(scope="module")
def ledger(cluster: Cluster) -> Iterator[str]:
    """Its name; it writes down that it runs."""
    cluster.ok("volume", "create", VOLUME, "--size", "64M", "--pool", "shared")
    words = ("--image", "tiny", "--memory", "128M", "--pool", "shared", "--volume", VOLUME)
    cluster.ok("vm", "create", NAME, *words, "--on-node-loss", "restart")
    place = "/etc/weft/start.d/ticks"
    script = f"mkdir -p /etc/weft/start.d; cat > {place}; chmod +x {place}; sync; {place} >/dev/null 2>&1 </dev/null &"
    cluster.ok("vm", "exec", NAME, "--", "sh", "-c", script, stdin=f"#!/bin/sh\n({TICKS}) &\n".encode())
    yield NAME
    cluster.ok("vm", "delete", NAME, "--yes")
    cluster.ok("volume", "delete", VOLUME, "--yes")


@pytest.mark.parametrize("seed", range(RUNS))
def test_it_never_runs_twice_whatever_befalls_its_node(cluster: Cluster, ledger: str, seed: int) -> None:
    chance = random.Random(f"lost guests {seed}")
    kinds, length = FAULTS[seed % len(FAULTS)], LENGTHS[seed % len(LENGTHS)] + chance.uniform(-0.5, 0.5)
    until(lambda: is_heard(cluster, ledger))
    hold = find_hold(cluster, ledger)
    assert hold is not None
    with GuestEyes(cluster) as eyes, ExitStack() as stack:
        until(lambda: time.monotonic() - hold.read_answered_at() < NODES.renew)
        returns = [stack.enter_context(befall(cluster, hold.node, kind, chance)) for kind in kinds]
        time.sleep(1.0)  # an answer may have been under way
        answered_at = hold.read_answered_at()
        time.sleep(answered_at + length - time.monotonic())
        chance.shuffle(returns)
        for go_on in returns:
            go_on()
            time.sleep(chance.choice((0.0, 0.5, 2.0)))
        until(lambda: is_heard(cluster, ledger))
        settled(cluster)
        ticks = read_ticks(cluster)
    eyes.check()
    lives = eyes.list_lives(ledger)
    assert lives[-1].ended == float("inf") and eyes.files >= 2, "its root disk and its volume were seen"
    ended = lives[0].ended - answered_at
    assert ended < NODES.promise or length < NODES.lease + NODES.kill, "it ended before another may start"
    boots = [boot for boot, _ in ticks]
    blocks = [boot for n, boot in enumerate(boots) if n == 0 or boots[n - 1] != boot]
    assert len(blocks) == len({*blocks}), "an earlier start of it wrote again"
    times = [at for _, at in ticks]
    assert times == sorted(times)
    moved = cluster.vm(ledger)["status"]["node"]
    print(
        f"\n{seed}: {', '.join(kinds)} for {length:.1f} s: ended after {ended:.1f} s, {hold.node} → {moved}, "
        f"{len(lives)} processes, {eyes.looks} looks, {len(ticks)} ticks of {len(blocks)} starts"
    )


@contextmanager
def befall(cluster: Cluster, node: str, kind: str, chance: random.Random) -> Iterator[Callable[[], None]]:
    """It lasts until the block ends, or the given function is called."""
    agent, guard = [f"weft agent {node} "], ["weft.drivers.guard.process", f"/{node}/"]
    match kind:
        case "cut off":
            with cut_off(cluster, node) as go_on:
                yield go_on
        case "output dropped" | "input dropped":
            with dropped(cluster, node, kind.split()[0]) as go_on:
                yield go_on
        case "agent stands still":
            with frozen(cluster.pids(*agent)) as go_on:
                yield go_on
        case "one of the guard stands still" | "both of the guard stand still":
            found = cluster.pids(*guard)
            assert len(found) == 2
            with frozen(found if "both" in kind else [chance.choice(found)]) as go_on:
                yield go_on
        case "agent is killed" | "one of the guard is killed":
            found = cluster.pids(*agent) if "agent" in kind else [chance.choice(cluster.pids(*guard))]
            kill(found)
            yield lambda: None  # what started it starts it again


@contextmanager
def dropped(cluster: Cluster, node: str, way: str) -> Iterator[Callable[[], None]]:
    """All that a node sends, or all that comes to it."""
    inside = ["nsenter", "-t", str(cluster.pid(f"weft init {node}")), "-n", "nft"]
    name = "oifname" if way == "output" else "iifname"
    rule = f'chain c {{ type filter hook {way} priority -300; {name} != "lo" drop; }}; '
    subprocess.run([*inside, "-f", "-"], input=f"table inet one-way {{ {rule} }}\n", text=True, check=True)

    def go_on() -> None:
        subprocess.run([*inside, "delete table inet one-way"], check=False, capture_output=True)  # it may be gone

    try:
        yield go_on
    finally:
        go_on()


def read_ticks(cluster: Cluster) -> list[tuple[str, int]]:
    """Which start of it, and when; but for lines that its end has cut off. The one that runs has written some."""
    boot = boot_id(cluster, NAME)
    until(lambda: cluster.run("vm", "exec", NAME, "--", "grep", "-q", boot, "/root/ticks").returncode == 0)
    lines = cluster.ok("vm", "exec", NAME, "--", "cat", "/root/ticks").splitlines()
    words = [line.split() for line in lines]
    return [(one[0], int(one[2])) for one in words if len(one) == 3 and len(one[0]) == 36 and len(one[2]) == 10]
