"""What a replication and a replica say of their witness's answer."""

from __future__ import annotations

import msgspec
import pytest

from weft.controllers.failover.facts import Group
from weft.controllers.failover.plan import plan_condition
from weft.informer.view import Item
from weft.kinds.replica import REPLICA, ReplicaMarks, ReplicaSpec
from weft.kinds.replication import REPLICATION, ReplicationSpec
from weft.objects.errors import InvalidInput, NotAuthenticated, Unavailable, WeftError
from weft.protocol.failover.claim import (
    Claim,
    ClaimAnswer,
    ClaimRefused,
    Conflict,
    Generation,
    Granted,
    Newer,
    Promised,
)
from weft.protocol.failover.witness import WitnessAnswer

FIRST, SECOND = Claim(Generation(1, "a"), "east"), Claim(Generation(2, "b"), "west")
FORCED = Claim(Generation(1, "c"), "west")


def make_group(*, is_standby: bool) -> Group:
    spec = ReplicaSpec(of="vm/web", origin="origin")
    here = ReplicationSpec(of="vm/web", cluster="west")
    replication = REPLICATION.make("web", here, 1.0, uid="u", project="default")
    envelope = REPLICA.make("web", spec, 1.0, uid="u", project="default") if is_standby else replication
    return Group(Item(envelope), "origin", FIRST, is_standby, is_source=not is_standby)


def test_a_promoted_replica_is_confirmed_by_the_witness_alone_since_its_source_names_no_primary_any_more() -> None:
    item = Item(
        REPLICA.make(
            "web", ReplicaSpec(of="vm/web", origin="o"), 1.0, uid="u", project="p", marks=ReplicaMarks(role="primary")
        )
    )
    promised = WitnessAnswer(answer=Promised(SECOND), epoch="e", is_armed=False, held_seconds=38.0)
    said = plan_condition(Group(item, "o", SECOND, is_standby=False), promised, "east")
    assert (said.status, said.reason) == ("True", "Confirmed") and "since its copy was promoted" in said.message


@pytest.mark.parametrize(
    ("answer", "is_armed", "held", "is_standby", "reason"),
    [
        (Promised(FIRST), True, 38.0, False, "Confirmed"),
        (Promised(FIRST), False, 38.0, False, "OnlyHere"),
        (Newer(SECOND), True, 38.0, False, "Superseded"),
        (Newer(SECOND), False, 0.0, True, "Superseded"),
        (
            Newer(FIRST),
            True,
            0.0,
            False,
            "Confirmed",
        ),  # it isn't newer than what was asked about, whatever it is called
        (Conflict(FORCED), True, 0.0, False, "Conflict"),
        (ClaimRefused("notHolder"), True, 0.1, True, "PrimarySpeaks"),
        (ClaimRefused("notHolder"), True, 0.0, True, "PrimarySilent"),
        (ClaimRefused("notHolder"), False, 9.0, True, "OnlyHere"),  # it may have heard nothing but this cluster
    ],
)
def test_each_answer_is_put_into_one_word(
    answer: ClaimAnswer, is_armed: bool, held: float, is_standby: bool, reason: str
) -> None:
    heard = WitnessAnswer(answer=answer, epoch="e", is_armed=is_armed, held_seconds=held)
    said = plan_condition(make_group(is_standby=is_standby), heard, "west")
    assert (said.reason, said.status == "True") == (reason, reason in ("Confirmed", "PrimarySpeaks", "PrimarySilent"))


@pytest.mark.parametrize(
    ("problem", "reason"),
    [(Unavailable("x"), "Unreachable"), (NotAuthenticated("x"), "Refused"), (InvalidInput("x"), "Refused")],
)
def test_what_is_not_known_is_said(problem: WeftError, reason: str) -> None:
    said = plan_condition(make_group(is_standby=True), problem, "west")
    assert (said.status, said.reason) == ("Unknown", reason)


@pytest.mark.parametrize(
    ("holder", "is_standby", "reason", "said"),
    [
        ("east", False, "Conflict", "of this cluster itself"),
        ("east", True, "Conflict", "of west itself"),
        ("west", True, "Superseded", "this cluster has promoted"),
        ("west", False, "Superseded", "west has promoted"),
    ],
)
def test_a_newer_generation_ends_a_primary_only_if_it_is_the_other_cluster_s(
    holder: str, is_standby: bool, reason: str, said: str
) -> None:
    newer = Newer(Claim(Generation(2, "b"), holder))
    heard = WitnessAnswer(answer=newer, epoch="e", is_armed=True, held_seconds=9.0)
    condition = plan_condition(make_group(is_standby=is_standby), heard, "west")
    assert condition.reason == reason and said in condition.message


def test_an_epoch_that_no_witness_would_take_back_is_no_answer() -> None:
    heard = WitnessAnswer(answer=Promised(FIRST), epoch="e" * 65, is_armed=True)
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(msgspec.json.encode(heard), type=WitnessAnswer)


def test_a_grant_is_no_word_from_the_primary_and_why_it_is_not_used_is_said() -> None:
    """The witness holds what it granted, too."""
    replica = REPLICA.make("web", ReplicaSpec(of="vm/web", origin="o"), 1.0, uid="r", project="default")
    group = Group(Item(replica), "o", Claim(Generation(1, "o"), "east"), is_standby=True)
    said = WitnessAnswer(answer=Granted(Claim(Generation(2, "x"), "west")), epoch="e", is_armed=True, held_seconds=38.0)
    assert plan_condition(group, said, "east").reason == "PrimarySilent"
    assert plan_condition(group, said, "east", "the quota is used up").message.endswith(
        "which it can't: the quota is used up"
    )
