"""API servers over three etcd members that are killed, frozen and cut off: clients see what one server could show."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.conformance.store.etcd_server import PROGRAM
from tests.history.run import Outcome, run_history

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="etcd is not installed (apt-get install etcd-server)")

# A server that shows registers for half a second as it has read them.
STALE = """
import time
from weft.store.etcd.store import EtcdStore
real, seen = EtcdStore.get, {}
async def get(self, key):
    if key not in seen or time.monotonic() - seen[key][0] > 0.5:
        found = await real(self, key)
        if found is None or "/r" not in key:
            return found
        seen[key] = (time.monotonic(), found)
    return seen[key][1]
EtcdStore.get = get
"""
# One that doesn't mind what others have written since it counted.
UNCOUNTED = """
from weft.store.etcd import commits
real = commits.plan_compare
def plan_compare(preconditions, places):
    kept = [at for at, each in enumerate(preconditions) if not getattr(each, "key", "").startswith("/quota/")]
    return real([preconditions[at] for at in kept], [places[at] for at in kept])
commits.plan_compare = plan_compare
"""


def play(folder: Path, before: str = "", asks: int = 700) -> Outcome:
    outcome = run_history(folder, 1, servers=2, clients=6, asks=asks, most_seconds=1.0, before=before)
    assert outcome.asked >= asks and len(outcome.outages) >= 2 and outcome.unknown < asks / 10, outcome
    return outcome


def test_registers_names_and_a_quota_stay_right_while_members_and_servers_are_killed_frozen_and_cut_off(
    tmp_path: Path,
) -> None:
    outcome = play(tmp_path)
    assert not outcome.broken, "\n".join(outcome.broken)
    assert not outcome.wrong, outcome.wrong


@pytest.mark.long
def test_servers_that_answer_what_they_read_before_are_found_out(tmp_path: Path) -> None:
    assert "has no order" in play(tmp_path, STALE).broken[0]


@pytest.mark.long
def test_servers_that_rely_on_their_own_sums_of_a_quota_are_found_out(tmp_path: Path) -> None:
    assert "cores of" in play(tmp_path, UNCOUNTED, asks=3000).wrong[0]
