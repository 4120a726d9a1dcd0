"""Two clusters, a node with its guard, and a witness, in virtual time under drawn faults, over the product's own decisions."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Sequence
from typing import Any, Literal

from msgspec.structs import replace

from weft.agent.guard.plan import GuardedGuest, describe_guard, explain_wait, find_until, plan_guard
from weft.client.cluster.hold import ArmingAnswer
from weft.contracts.guard import Held
from weft.controllers.failover.arming import ArmingFacts, Placed, plan_arming
from weft.controllers.failover.restored import change_replication, mark_replica
from weft.drivers.guard.holds import Hold, HoldRequest, Holds, apply_request, list_due
from weft.failover.primary import is_confirmed, is_retired
from weft.failover.standby import (
    Silence,
    WitnessQuestion,
    find_taken,
    find_unused,
    follow_renewals,
    may_ask,
    was_not_promoted,
)
from weft.failover.timing import Timing
from weft.failover.witness import (
    Vote,
    VoteRecord,
    begin_vote,
    inspect_claim,
    receive_claim,
    receive_question,
    receive_return,
)
from weft.kinds.replication import ReplicationActions, ReplicationMarks, ReplicationSpec
from weft.protocol.failover.claim import Claim, ClaimAnswer, Generation
from weft.protocol.failover.stamp import write_stamp
from weft.protocol.failover.witness import WitnessAnswer

FIRST = Claim(Generation(1, "first"), "a")
NODE, PRIMARY, STANDBY, WITNESS = "n", "a", "b", "w"
PLACES = (NODE, PRIMARY, STANDBY, WITNESS)
LINES = ((NODE, PRIMARY), (PRIMARY, WITNESS), (PRIMARY, STANDBY), (STANDBY, WITNESS))
REPORT_SECONDS, PATIENCE_SECONDS = 2.0, 10.0
Mode = Literal["", "begin", "hold"]
FAULTS = (
    *("cut", "cut", "line", "isolate", "isolate", "freeze", "freeze", "restart", "power", "agent", "empty"),
    *("people", "restore", "delete"),
)
BACKUP_SECONDS = 20.0  # between two states that a store may go back to
SLOW_SHARE, MOST_DELAY_SECONDS = 0.05, 8.0  # of messages, and what they take at most


def is_late(arming: int, known: int) -> bool:
    """Whether the standby refuses a word of its primary: as ``_arm`` in ``kinds/replica.py``."""
    return arming < known


class Place:
    """A machine with its clock. Nothing happens there before ``off_until``; while frozen, what comes waits."""

    def __init__(self, chance: random.Random) -> None:
        self.off_until, self.is_frozen = 0.0, False
        self._rate, self._ahead = 1 + chance.uniform(-0.005, 0.005), chance.uniform(0, 1e6)
        self.boots = 0  # its clock begins anew with each

    def read(self, at: float) -> float:
        return at * self._rate + self._ahead

    def find(self, clock: float) -> float:
        """When its clock shows this."""
        return (clock - self._ahead) / self._rate

    def boot(self, at: float) -> None:
        self.boots, self._ahead = self.boots + 1, 5.0 - at * self._rate


class Node:
    """The primary's node: an agent that may be killed, and a guard that outlives it and is the first to run after a freeze."""

    def __init__(self, place: Place, timing: Timing, chance: random.Random) -> None:
        self.place, self._timing, self._chance = place, timing, chance
        self.agent_off_until = 0.0
        self.mode: Mode = ""  # of its allocation
        self._mode_number = 0
        self.until: dict[str, float] = {}  # the agent's
        self.held: Holds = {}  # the guard's
        self.began: float | None = None
        self._was_held = False  # on its disk
        self._kill_seconds = 0.0  # of this guest
        self.ran: list[tuple[float, float]] = []

    def write_stamp(self, at: float) -> str:
        return write_stamp(f"boot{self.place.boots}", self.place.read(at))

    def take_stamp(self, stamp: str, at: float) -> None:
        until = find_until(stamp, f"boot{self.place.boots}", self.place.read(at)) if stamp else None
        if until is not None:
            self.until["g"] = max(until, self.until.get("g", 0.0))
        self.review(at)

    def take_mode(self, mode: Mode, number: int) -> None:
        """Changes of its allocation come in order."""
        if number > self._mode_number:
            self.mode, self._mode_number = mode, number

    def describe(self, at: float) -> str:
        """What it reports of its guest."""
        guest = self._read_guest()
        if guest is None:
            return ""
        held = self.held.get("g")
        return describe_guard(guest, self.until.get("g"), Held(held.until) if held else None, self.place.read(at), "")

    def review(self, at: float) -> None:
        """The agent's turn."""
        self.settle(at)
        now, guest = self.place.read(at), self._read_guest()
        known = {name: Held(one.until) for name, one in self.held.items()}
        plan = plan_guard({"g": guest} if guest is not None else {}, self.until, known)
        renew = {name: Hold(to, ("/g",)) for name, to in plan.renew.items()}
        self.held = apply_request(self.held, HoldRequest(renew, plan.drop))
        held = self.held.get("g")
        self._was_held |= held is not None and self.mode == "hold"
        shown = Held(held.until) if held else None
        may_run = guest is None or not explain_wait(self._read_guest() or guest, self.until.get("g"), shown, now)
        if self.began is None and may_run:
            self.began, self._kill_seconds = at, self._chance.uniform(0.0, self._timing.kill)

    def settle(self, at: float) -> None:
        """The guard's turn: a guest whose time was over has ended, after what ending it took."""
        if self.began is not None and list_due(self.held, self.place.read(at)):
            ended = self.place.find(self.held["g"].until) + self._kill_seconds
            if ended <= at:
                self.end(max(self.began, ended))

    def end(self, at: float) -> None:
        if self.began is not None:
            self.ran.append((self.began, at))
            self.began = None

    def freeze(self, at: float) -> None:
        self.settle(at)
        if self.began is not None:
            self.ran.append((self.began, at))

    def thaw(self, at: float) -> None:
        if self.began is not None:
            self.began = None if list_due(self.held, self.place.read(at)) else at

    def _read_guest(self) -> GuardedGuest | None:
        return GuardedGuest("g", "vm", self.mode, self._was_held) if self.mode else None

    def lose_power(self, at: float) -> None:
        self.settle(at)
        self.end(at)
        self.held, self.until = {}, {}


class World:
    """``cuts``: lines that are cut for the whole run; ``faults`` False: nothing else befalls it."""

    def __init__(
        self,
        seed: int,
        timing: Timing,
        cuts: Sequence[tuple[str, str]] = (),
        *,
        faults: bool = True,
        from_: float = 100.0,
    ) -> None:
        self._chance = random.Random(seed)
        self._timing, self._at, self._faults = timing, 0.0, faults
        self._events: list[tuple[float, int, str, Callable[[], None]]] = []
        self._order = itertools.count()
        self._places = {name: Place(self._chance) for name in PLACES}
        self._cut_from: dict[tuple[str, str], float] = dict.fromkeys(cuts, from_)
        self._cut_until: dict[tuple[str, str], float] = {}
        self.node = Node(self._places[NODE], timing, self._chance)
        # The primary's store.
        self._stamp, self._confirmed, self._word, self._reports = "", "", "", 0
        self.spec, self.marks = ReplicationSpec(of="vm/web", cluster="b", automatic=True), ReplicationMarks()
        self._mode: Mode = ""
        self._mode_number = 0
        # What its process knows.
        self._told: tuple[str, int, ArmingAnswer] | None = None  # of which stage and turn
        self._is_witnessed = self._retired = False  # as the witness said
        self.restored = self.given_back = 0  # how often
        self.is_deleted = False  # the replication: nobody names it any more
        # The standby's store, and what its process knows.
        self.renewals, self.claim = 0, FIRST
        self.is_automatic, self.arming = False, 0
        self.is_primary, self.is_restored, self.returned = False, False, ""
        self._silence: Silence | None = None
        self._asked: WitnessQuestion | None = None
        self._asked_at = 0.0
        self.refuses_take_over_until = 0.0  # as where the quota is used up
        self.taken_at: float | None = None  # whatever its store knows of it
        self._backups: list[tuple[ReplicationSpec, ReplicationMarks, Mode, tuple[Any, ...]]] = []
        # The witness's file, and what its process knows.
        self._kept: VoteRecord | None = None
        self._vote: Vote | None = None
        self._turn = {PRIMARY: 0, STANDBY: 0}  # of the process: what it waited for before is forgotten

    def cut_from(self, name: str, begins: float, ends: float) -> None:
        """No line of this place works in that time."""
        pairs = [pair for line in LINES if name in line and NODE not in line for pair in (line, line[::-1])]
        self._later(begins, "", lambda: self._cut(pairs, ends - begins))

    def run(self, seconds: float) -> float:
        """Seconds in which guests ran at both clusters."""
        ticks = ((NODE, self._report), (NODE, self._review), (PRIMARY, self._renew), (STANDBY, self._watch))
        for name, act in ticks:
            self._later(self._chance.uniform(0, 2), name, act)
        if self._faults:
            self._later(self._chance.expovariate(1 / 25), "", self._draw_fault)
            self._back_up()
        while self._events and self._events[0][0] < seconds:
            self._at, _, name, act = heapq.heappop(self._events)
            place = self._places.get(name)
            if place is not None and place.off_until > self._at:
                self._later(place.off_until - self._at + 0.001, name, act)
                continue
            act()
        self.node.settle(seconds)
        self.node.end(seconds)
        taken = self.taken_at if self.taken_at is not None else seconds
        return sum(max(0.0, ended - max(began, taken)) for began, ended in self.node.ran)

    # --- the primary's node and server ---

    def _report(self) -> None:
        self._later(self._chance.uniform(1.0, REPORT_SECONDS), NODE, self._report)
        if self.node.agent_off_until > self._at:
            return
        self._reports += 1
        stamp, word, number = self.node.write_stamp(self._at), self.node.describe(self._at), self._reports

        def arrive() -> None:
            self._stamp = stamp
            if number == self._reports:  # they are made one after the other
                self._word = word
            confirmed, mode, count = self._confirmed, self._mode, self._mode_number
            self._send(PRIMARY, NODE, lambda: self._hear(confirmed, mode, count))

        self._send(NODE, PRIMARY, arrive)

    def _hear(self, confirmed: str, mode: Mode, number: int) -> None:
        if self.node.agent_off_until <= self._at:
            self.node.take_mode(mode, number)
            self.node.take_stamp(confirmed, self._at)

    def _review(self) -> None:
        self._later(self._chance.uniform(0.1, 1.0), NODE, self._review)
        if self.node.agent_off_until <= self._at:
            self.node.review(self._at)
        else:
            self.node.settle(self._at)

    def _renew(self) -> None:
        self._later(self._timing.renew, PRIMARY, self._renew)
        if self.is_deleted:
            return
        stamp, turn, asked = self._stamp, self._turn[PRIMARY], self.marks
        answered = [False]

        def hear(answer: WitnessAnswer) -> None:
            if self._turn[PRIMARY] != turn:
                return
            self._is_witnessed = is_confirmed(FIRST, answer)
            if self._is_witnessed:
                answered[0], self._confirmed = True, stamp
            is_current = asked.arming == self.marks.arming and asked.guard != "hold"
            self._retired = is_current and is_retired(FIRST, answer, asked.arming)
            self._arm()

        def ask_standby() -> None:
            if not answered[0] and self._turn[PRIMARY] == turn:
                self._is_witnessed = self._retired = False
                self._send(PRIMARY, STANDBY, lambda: self._count_up(stamp, turn))
                self._arm()

        told = 0 if asked.guard == "hold" else asked.arming
        self._ask_witness(PRIMARY, "claim", FIRST, hear, told)
        self._later(2.0, PRIMARY, ask_standby)

    def _count_up(self, stamp: str, turn: int) -> None:
        """The standby's API server: one commit."""
        if self.is_primary or self.is_restored:
            return
        self.renewals += 1

        def hear() -> None:
            if self._turn[PRIMARY] == turn:
                self._confirmed = stamp

        self._send(STANDBY, PRIMARY, hear)

    def _arm(self) -> None:
        """The controllers' turn: one step."""
        turn = (self.marks.guard, self.marks.arming)
        told = self._told[2] if self._told is not None and self._told[:2] == turn else None
        placed = [Placed("n", self._mode, self._word)]
        facts = ArmingFacts(
            spec=self.spec,
            actions=ReplicationActions(),
            marks=self.marks,
            phase="",
            has_point=True,
            is_witnessed=self._is_witnessed,
            retired="yes" if self._retired else "",
            placed=placed,
            answer=told,
        )
        number = self.marks.arming + 1
        match plan_arming(facts).step:
            case "begin":
                self._write("begin", self.marks.arming, "begin")
            case "hold":
                self._write("hold", number, "hold")
            case "release":
                self._write("release", number, self._mode)
            case "end":
                self._write("", self.marks.arming, "")
            case "on" | "off" as what:
                process = self._turn[PRIMARY]
                self._send(PRIMARY, STANDBY, lambda: self._take_word(what == "on", *turn, process))

    def _write(self, guard: Literal["", "begin", "hold", "release"], arming: int, mode: Mode) -> None:
        """One commit: the replication, the VM and its allocation."""
        self.marks = ReplicationMarks(guard=guard, arming=arming)
        if mode != self._mode:
            self._mode, self._mode_number = mode, self._mode_number + 1

    def _take_word(self, automatic: bool, guard: str, arming: int, process: int) -> None:
        """The standby's API server: one commit."""
        if self.is_primary:
            told = ArmingAnswer("promoted")
        elif self.is_restored:
            told = ArmingAnswer("refused")
        elif is_late(arming, self.arming):
            told = ArmingAnswer("overtaken", "", self.is_automatic, self.arming)
        else:
            self.is_automatic, self.arming = automatic, arming
            self.renewals += 1
            told = ArmingAnswer("done")

        def hear() -> None:
            if self._turn[PRIMARY] == process:
                self._told = guard, arming, told

        self._send(STANDBY, PRIMARY, hear)

    # --- the standby's controllers ---

    def _watch(self) -> None:
        self._later(self._timing.renew, STANDBY, self._watch)
        now, turn = self._places[STANDBY].read(self._at), self._turn[STANDBY]
        if self.is_primary:
            self._ask_witness(STANDBY, "claim", self.claim, lambda _: None)
            return
        self._silence = follow_renewals(self._silence, self.renewals, self._timing.promise, now)
        if self._asked is not None and now - self._asked_at < PATIENCE_SECONDS:
            return
        self._asked = None
        if not self.is_automatic or not may_ask(self._silence, now):
            what = "inspect" if self.is_restored else "return" if self.returned else "claim"
            self._ask_witness(STANDBY, what, FIRST, lambda answer: self._note(answer, turn), returned=self.returned)
            return
        asked = self._asked = WitnessQuestion(self.renewals, FIRST, STANDBY)
        self._asked_at = now

        def hear(answer: WitnessAnswer) -> None:
            if self._asked is not asked or self._turn[STANDBY] != turn:
                return
            self._asked = None
            if self._places[STANDBY].read(self._at) - now < PATIENCE_SECONDS:
                # The commit comes a little later than the answer.
                self._later(self._chance.uniform(0.0, 3.0), STANDBY, lambda: self._take(asked, answer.answer, turn))

        self._ask_witness(STANDBY, "question", FIRST, hear, self.arming)

    def _note(self, answer: WitnessAnswer, turn: int) -> None:
        """Of what nothing was asked: one commit."""
        if self._turn[STANDBY] != turn or self.is_primary:
            return
        unused = find_unused(STANDBY, answer)
        if self.is_restored:
            self.is_restored = not was_not_promoted(answer)
        elif unused and unused != self.returned:
            self.returned, self.renewals = unused, self.renewals + 1

    def _take(self, asked: WitnessQuestion, answer: ClaimAnswer, turn: int) -> None:
        claim = find_taken(asked, self.renewals, answer, self.returned)
        if self._at < self.refuses_take_over_until:
            return
        if claim is not None and self.is_automatic and not self.is_primary and self._turn[STANDBY] == turn:
            self.claim, self.is_primary = claim, True
            if self.taken_at is None:
                self.taken_at = self._at

    # --- the witness ---

    def _ask_witness(
        self,
        site: str,
        what: str,
        claim: Claim,
        hear: Callable[[WitnessAnswer], None],
        turn: int = 0,
        returned: str = "",
    ) -> None:
        def arrive() -> None:
            now, seconds = self._places[WITNESS].read(self._at), self._timing.promise
            if what == "inspect":
                self._say(site, inspect_claim(self._vote, claim), self._vote, hear)
                return
            if what == "claim":
                vote, answer = receive_claim(self._vote, site, claim, seconds, now, turn)
            elif what == "return":
                vote, answer = receive_return(self._vote, site, claim, returned, seconds, now)
                self.given_back += self._vote is not None and vote.record.claim != self._vote.record.claim
            else:
                fresh = f"{self._chance.getrandbits(64):x}"
                vote, answer = receive_question(self._vote, site, claim, seconds, now, fresh, turn)
            self._vote, self._kept = vote, vote.record
            self._say(site, answer, vote, hear)

        self._send(site, WITNESS, arrive)

    def _say(self, site: str, answer: ClaimAnswer, vote: Vote | None, hear: Callable[[WitnessAnswer], None]) -> None:
        said = WitnessAnswer(answer=answer, epoch="", is_armed=False)
        if vote is not None:
            said = replace(said, is_armed=vote.is_armed, turn=vote.record.turn, is_used=vote.record.is_taken)
        self._send(WITNESS, site, lambda: hear(said))

    # --- what befalls them ---

    def _later(self, seconds: float, name: str, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self._at + seconds, next(self._order), name, act))

    def _send(self, source: str, target: str, act: Callable[[], None]) -> None:
        if (
            self._cut_until.get((source, target), 0.0) > self._at
            or self._cut_from.get((source, target), 1e9) <= self._at
        ):
            return
        slow = self._faults and self._chance.random() < SLOW_SHARE
        self._later(
            self._chance.uniform(0, MOST_DELAY_SECONDS) if slow else self._chance.uniform(0.001, 0.1), target, act
        )

    def _draw_fault(self) -> None:
        self._later(self._chance.expovariate(1 / 25), "", self._draw_fault)
        chance, name = self._chance, self._chance.choice(PLACES)
        every = [pair for line in LINES for pair in (line, line[::-1])]
        match chance.choice(FAULTS):
            case "cut":  # some directions
                self._cut([pair for pair in every if chance.random() < 0.4], chance.uniform(5, 120))
            case "line":
                line = chance.choice(LINES)
                self._cut([line, line[::-1]], chance.uniform(20, 200))
            case "isolate":
                self._cut([pair for pair in every if name in pair], chance.uniform(5, 150))
            case "freeze":
                self._stop(name, chance.uniform(1, 120), frozen=True)
            case "restart":
                self._restart(name)
            case "power":
                self._stop(name, chance.uniform(5, 120), frozen=False)
            case "agent":  # kill -9, and it comes back
                self.node.agent_off_until, self.node.until = self._at + chance.uniform(1, 60), {}
            case "people":
                self.spec = replace(self.spec, automatic=not self.spec.automatic)
            case "restore" if chance.random() < 0.5:
                backup = chance.choice((self._backups[0], chance.choice(self._backups)))
                self._restore(chance.choice((PRIMARY, STANDBY)), backup)
            case "delete" if chance.random() < 0.2 and not self.marks.guard and not self.spec.automatic:
                self.is_deleted = True
            case "empty" if chance.random() < 0.5:  # the witness loses its file
                self._vote = self._kept = None

    def _back_up(self) -> None:
        self._later(BACKUP_SECONDS, "", self._back_up)
        self._backups.append(self._save())

    def _save(self) -> tuple[ReplicationSpec, ReplicationMarks, Mode, tuple[Any, ...]]:
        there = (self.renewals, self.claim, self.is_automatic, self.arming, self.is_primary, self.returned)
        return self.spec, self.marks, self._mode, there

    def _restore(self, name: str, backup: tuple[ReplicationSpec, ReplicationMarks, Mode, tuple[Any, ...]]) -> None:
        """The store goes back to an earlier time; whatever runs on nodes runs on."""
        if self._places[name].off_until > self._at or (name == PRIMARY and self.is_deleted):
            return
        self.restored += 1
        spec, marks, mode, there = backup
        if name == PRIMARY:
            changes = change_replication(marks.arming, 1e6 + self._at)
            guard = changes.get("guard", marks.guard)
            self._write(guard, changes.get("arming", marks.arming), "hold" if changes else mode)
            self.spec = replace(self.spec, automatic=spec.automatic)
            self._stamp = self._confirmed = ""
        else:
            self.renewals, self.claim, self.is_automatic, self.arming, self.is_primary, self.returned = there
            if not self.is_primary:
                changes = mark_replica(self.renewals)
                self.is_automatic = changes.get("automatic", self.is_automatic)
                self.is_restored, self.renewals = changes.get("restored", False), changes["renewals"]
        self._restart(name)

    def _cut(self, pairs: Sequence[tuple[str, str]], seconds: float) -> None:
        for pair in pairs:
            self._cut_until[pair] = self._at + seconds

    def _stop(self, name: str, seconds: float, *, frozen: bool) -> None:
        place = self._places[name]
        if place.off_until > self._at:
            return
        place.off_until, place.is_frozen = self._at + seconds, frozen
        ends = place.off_until
        if frozen and name == NODE:
            self.node.freeze(self._at)
            self._later(seconds, "", lambda: self.node.thaw(ends))
        elif not frozen:
            if name == NODE:
                self.node.lose_power(self._at)
            self._later(seconds, "", lambda: self._boot(name))

    def _boot(self, name: str) -> None:
        self._places[name].boot(self._at)
        self._restart(name)

    def _restart(self, name: str) -> None:
        """kill -9 of the process: it knows what is on disk."""
        if self._places[name].off_until > self._at:
            return
        if name in self._turn:
            self._turn[name] += 1
        if name == PRIMARY:
            self._told, self._is_witnessed, self._retired = None, False, False
        if name == STANDBY:
            self._silence = self._asked = None
        elif name == WITNESS:
            self._vote = begin_vote(self._kept, self._places[name].read(self._at)) if self._kept is not None else None


def run_seeds(seeds: range, timing: Timing, seconds: float) -> tuple[list[int], int]:
    """The seeds in which guests ran at both clusters at one moment, and in how many of all the standby took over."""
    split, taken = list[int](), 0
    for seed in seeds:
        world = World(seed, timing)
        if world.run(seconds) > 0:
            split.append(seed)
        taken += world.taken_at is not None
    return split, taken
