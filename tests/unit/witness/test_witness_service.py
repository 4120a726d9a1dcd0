"""The witness as a program: who may ask what, what is on disk before an answer, and what any of them can make it hold."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from weft.contracts.clock import read_boot_time
from weft.failover.witness import VoteRecord
from weft.objects.errors import Forbidden, InvalidInput, NotAuthenticated, Unavailable
from weft.protocol.failover.claim import MOST_GENERATION, Claim, ClaimRefused, Generation, Granted, Newer, Promised
from weft.protocol.failover.witness import WitnessAnswer, WitnessRequest
from weft.witness import service
from weft.witness.service import Witness
from weft.witness.sites import MOST_SITES
from weft.witness.votes import MOST_FILE_BYTES, read_votes

SECRETS = {"east": "e" * 64, "west": "w" * 64, "north": "n" * 64}
SITES = {name: hashlib.sha256(secret.encode()).hexdigest() for name, secret in SECRETS.items()}
FIRST = Claim(Generation(1, "first"), "east")
PEERS = {"east": "west", "west": "east", "north": "east"}


class Lab:
    def __init__(self, folder: Path) -> None:
        self.path, self.now = folder / "votes.json", 1000.0
        self.witness = self.start()

    def start(self) -> Witness:
        self.witness = Witness(self.path, SITES, lambda: self.now)
        return self.witness

    def ask(self, site: str, what: Any = "claim", claim: Claim = FIRST, **changes: Any) -> WitnessAnswer:
        asked = WitnessRequest(peer=PEERS[site], group="shop", what=what, claim=claim, seconds=27.0)
        body = msgspec.json.encode(msgspec.structs.replace(asked, **changes))
        return self.witness.answer(SECRETS[site], body)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def test_a_take_over_is_granted_after_the_promise_and_is_on_disk_before_the_answer(lab: Lab) -> None:
    assert lab.ask("east").answer == Promised(FIRST) and not lab.ask("east").is_armed
    assert lab.ask("west").is_armed
    refused = lab.ask("west", "question").answer
    assert isinstance(refused, ClaimRefused) and refused.reason == "promised"
    lab.now += 27.0
    granted = lab.ask("west", "question").answer
    assert isinstance(granted, Granted) and granted.claim.holder == "west"
    assert read_votes(lab.path).records["east/west/shop"].claim == granted.claim
    assert lab.ask("east").answer == Newer(granted.claim)


def test_what_a_primary_ended_and_what_was_given_back_outlive_the_process(lab: Lab) -> None:
    lab.ask("east", turn=4)
    said = lab.ask("west")
    assert (said.turn, said.is_used, said.is_heard) == (4, True, True)
    lab.start()
    started = lab.ask("west", "inspect")
    assert (started.turn, started.is_heard, started.is_armed) == (4, False, True)
    lab.now += 27.0
    assert lab.ask("west", "question", turn=3).answer == ClaimRefused("earlierTurn")
    granted = lab.ask("west", "question", turn=4)
    assert isinstance(granted.answer, Granted) and not granted.is_used
    assert not lab.ask("east").is_used
    lab.ask("west", "return", returned=granted.answer.claim.generation.id)
    lab.start()
    again = lab.ask("east")
    assert (again.answer, again.is_armed, again.is_used) == (Promised(FIRST), True, True)


def test_who_inspects_makes_no_group(lab: Lab) -> None:
    assert lab.ask("west", "inspect").answer == ClaimRefused("notHolder")
    assert not read_votes(lab.path).records and lab.witness.count().groups == 0


def test_one_that_starts_knows_its_claims_and_grants_nothing_for_a_promise(lab: Lab) -> None:
    for site in ("east", "west"):
        lab.ask(site)
    lab.now += 100.0
    epoch = lab.witness.epoch
    assert lab.start().epoch == epoch
    assert isinstance(lab.ask("west", "question").answer, ClaimRefused)
    lab.now += 27.0
    assert isinstance(lab.ask("west", "question").answer, Granted)


def test_one_that_lost_its_file_or_got_an_old_one_back_needs_both_sites_first(lab: Lab) -> None:
    for site in ("east", "west"):
        lab.ask(site)
    old = lab.path.read_bytes()
    lab.path.unlink()
    epoch = lab.start().epoch
    lab.now += 100.0
    assert lab.ask("west", "question").answer == ClaimRefused("unconfirmed")
    lab.path.write_bytes(old)
    lab.start()
    lab.now += 100.0
    assert lab.ask("west", "question", epoch=epoch).answer == ClaimRefused("unconfirmed")
    assert lab.ask("east", epoch=lab.witness.epoch).is_armed


def test_nobody_else_speaks_for_a_group(lab: Lab) -> None:
    lab.ask("east")
    newer = Claim(Generation(9, "x"), "north")
    lab.ask("north", claim=newer)  # a group of its own, of the same name
    assert lab.ask("east").answer == Promised(FIRST)
    with pytest.raises(InvalidInput, match="neither"):
        lab.ask("east", claim=newer)
    with pytest.raises(InvalidInput, match="another site"):
        lab.ask("east", peer="east")
    with pytest.raises(InvalidInput, match="another site"):
        lab.ask("east", peer="south")
    for wrong in ("", "x", SITES["east"], "e" * 100_000):
        with pytest.raises(NotAuthenticated):
            lab.witness.answer(wrong, b"{}")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[" * 3000,
        b"\xff\xfe",
        b" " * 5000,
        b'{"peer":"west","group":"a/b","what":"claim","claim":{"generation":{"number":1,"id":"x"},"holder":"east"},"seconds":9}',
        b'{"peer":"west","group":"a\\n","what":"claim","claim":{"generation":{"number":1,"id":"x"},"holder":"east"},"seconds":9}',
        b'{"peer":"west","group":"a","what":"claim","claim":{"generation":{"number":0,"id":"x"},"holder":"east"},"seconds":9}',
        b'{"peer":"west","group":"a","what":"claim","claim":{"generation":{"number":1,"id":""},"holder":"east"},"seconds":9}',
        b'{"peer":"west","group":"a","what":"claim","claim":{"generation":{"number":1,"id":"x"},"holder":"east"},"seconds":1e9}',
        b'{"peer":"west","group":"a","what":"take","claim":{"generation":{"number":1,"id":"x"},"holder":"east"},"seconds":9}',
    ],
)
def test_what_is_not_a_request_is_refused_and_changes_nothing(lab: Lab, body: bytes) -> None:
    before = lab.path.read_bytes()
    with pytest.raises(InvalidInput):
        lab.witness.answer(SECRETS["east"], body)
    assert lab.path.read_bytes() == before


def test_a_site_has_so_many_groups_and_no_more(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "MOST_GROUPS", 3)
    for number in range(3):
        lab.ask("east", group=f"g{number}")
    with pytest.raises(Forbidden, match="the most"):
        lab.ask("east", group="g3")
    assert lab.ask("east", group="g1").answer == Promised(FIRST)
    assert lab.ask("north", peer="west", claim=Claim(Generation(1, "x"), "west")).answer  # others have theirs


def test_a_site_that_makes_groups_with_all_others_takes_no_place_of_theirs(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "MOST_GROUPS", 3)
    for number in range(3):
        lab.ask("east", group=f"g{number}")
    lab.witness.answer(SECRETS["west"], ask_north())
    lab.start()
    lab.ask("west", group="g0")
    with pytest.raises(Forbidden):
        lab.ask("east", group="g3")
    lab.ask("west", group="own", claim=Claim(Generation(1, "x"), "west"))


def ask_north() -> bytes:
    claim = Claim(Generation(1, "x"), "west")
    return msgspec.json.encode(WitnessRequest(peer="north", group="n", what="claim", claim=claim, seconds=27.0))


def test_a_generation_after_which_none_can_come_is_refused_so_the_file_stays_readable(lab: Lab) -> None:
    for number, is_taken in ((MOST_GENERATION, False), (MOST_GENERATION - 1, True)):
        last = Claim(Generation(number, "x"), "east")
        if not is_taken:
            with pytest.raises(InvalidInput, match="less than"):
                lab.ask("east", claim=last)
            continue
        lab.ask("east", claim=last), lab.ask("west", claim=last)
        lab.now += 30.0
        assert isinstance(lab.ask("west", "question", claim=last).answer, Granted)
    granted = lab.ask("east", claim=FIRST).answer
    assert msgspec.json.decode(msgspec.json.encode(granted), type=type(granted)) == granted
    assert lab.start().count().groups == 1


def test_the_file_may_be_as_long_as_all_sites_can_make_it() -> None:
    names = ["a" * 63, "b" * 63]
    claim = Claim(Generation(MOST_GENERATION, "x" * 64), names[0])
    record = VoteRecord(claim, 3600.0 - 1 / 3, frozenset(names), is_taken=False)
    longest = len(msgspec.json.encode({"/".join((*names, "g" * 63)): record}))
    assert longest * MOST_SITES * service.MOST_GROUPS < MOST_FILE_BYTES


def test_a_removed_site_is_refused_also_if_its_groups_cannot_be_written_off(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.ask("east")
    left = {name: SITES[name] for name in ("east", "north")}

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("weft.witness.votes.write_durably", full)
        with pytest.raises(Unavailable):
            lab.witness.put_sites(left)
    with pytest.raises(NotAuthenticated):
        lab.ask("west")
    assert lab.witness.count().groups == 0


def test_one_that_starts_has_no_groups_of_sites_that_were_removed_before(lab: Lab) -> None:
    lab.ask("east")
    assert lab.start().count().groups == 1
    left = {name: SITES[name] for name in ("east", "north")}
    assert Witness(lab.path, left, lambda: lab.now).count().groups == 0


def test_what_cannot_be_written_is_not_promised(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    for site in ("east", "west"):
        lab.ask(site)
    lab.now += 30.0

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("weft.witness.votes.write_durably", full)
        with pytest.raises(Unavailable, match="No space left"):
            lab.ask("west", "question")
    assert lab.ask("east").answer == Promised(FIRST)


def test_a_damaged_file_is_named_with_the_way_out(lab: Lab) -> None:
    lab.path.write_bytes(b'{"epoch":')
    with pytest.raises(Unavailable, match=r"votes\.json") as refusal:
        lab.start()
    assert "rename it" in (refusal.value.hint or "")


PROGRAM = """
import sys, msgspec
from pathlib import Path
from weft.protocol.failover.witness import WitnessRequest
from weft.witness.service import Witness
from tests.unit.witness.test_witness_service import SECRETS, SITES, FIRST, PEERS
time = [0.0]
witness, claim = Witness(Path(sys.argv[1]), SITES, lambda: time[0]), FIRST
while True:
    for site, what in (("east", "claim"), ("west", "claim"), ("west" if claim.holder == "east" else "east", "question")):
        time[0] += 100.0
        asked = WitnessRequest(peer=PEERS[site], group="shop", what=what, claim=claim, seconds=27.0)
        answer = witness.answer(SECRETS[site], msgspec.json.encode(asked)).answer
    claim = answer.claim
    print(claim.generation.number, claim.generation.id, flush=True)
"""


@pytest.mark.parametrize("grants", [1, 4, 9])
def test_every_grant_that_was_answered_outlives_a_kill(tmp_path: Path, grants: int) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "votes.json")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3]) as program:
        assert program.stdout is not None
        lines = [program.stdout.readline() for _ in range(grants)]
        os.kill(program.pid, signal.SIGKILL)
        lines += program.stdout.readlines()  # those that were answered before the kill came
    told = [line.split() for line in lines if line.endswith("\n")]
    kept = read_votes(tmp_path / "votes.json").records["east/west/shop"].claim.generation
    assert len(told) >= grants
    assert kept.number > int(told[-1][0]) or [str(kept.number), kept.id] == told[-1]


def test_boot_time_goes_on() -> None:
    assert 0 < read_boot_time() <= read_boot_time()


def test_a_group_that_nobody_named_for_a_day_gives_way_to_a_new_one(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "MOST_GROUPS", 2)
    lab.ask("east", group="old")
    lab.now += service.FORGET_SECONDS / 2
    lab.ask("east", group="young")
    lab.now += service.FORGET_SECONDS / 2
    assert lab.ask("east", group="new").held_seconds == 27.0
    assert set(read_votes(lab.path).records) == {"east/west/new", "east/west/young"}
    with pytest.raises(Forbidden):
        lab.ask("east", group="newer")
