from __future__ import annotations

import itertools

import pytest

from weft.objects.errors import IllegalTransition
from weft.objects.lifecycle import (
    ALLOWED,
    SO_ALREADY,
    TRANSITIONS,
    Phase,
    check_verb,
    describe_phase,
    legal_verbs,
    may_change,
)


def test_the_table_knows_every_phase() -> None:
    assert set(TRANSITIONS) == set(Phase)


@pytest.mark.parametrize(
    "path",
    [
        "Pending Hold Pending Prolog Boot Running",
        "Running Migrate Running",
        "Running Suspended Running",
        "Running Stopped Running",
        "Running Shutdown Epilog Done",
        "Running Unknown Running",
    ],
)
def test_the_lifecycle_of_the_specification_is_legal(path: str) -> None:
    phases = [Phase(word) for word in path.split()]
    assert all(may_change(a, b) for a, b in itertools.pairwise(phases))


@pytest.mark.parametrize(
    ("old", "new"), [("Done", "Running"), ("Pending", "Running"), ("Hold", "Running"), ("Epilog", "Running")]
)
def test_shortcuts_are_illegal(old: str, new: str) -> None:
    assert not may_change(Phase(old), Phase(new))


def test_done_is_the_end() -> None:
    assert TRANSITIONS[Phase.DONE] == frozenset()


@pytest.mark.parametrize("phase", list(Phase))
@pytest.mark.parametrize("verb", list(ALLOWED))
def test_an_illegal_verb_names_the_legal_ones(verb: str, phase: Phase) -> None:
    if phase in ALLOWED[verb] or phase in SO_ALREADY.get(verb, ()):
        check_verb(verb, phase, "vm/x")
        return
    with pytest.raises(IllegalTransition) as caught:
        check_verb(verb, phase, "vm/x")
    assert caught.value.hint is not None
    remedies = [word for word in legal_verbs(phase) if (phase, word) != (Phase.UNKNOWN, "console")]
    assert caught.value.hint == "possible now: " + ", ".join(remedies)
    assert caught.value.details["legal"] == legal_verbs(phase) and verb not in legal_verbs(phase)


def test_a_sentence_has_a_word_for_each_phase_whose_name_is_none() -> None:
    with pytest.raises(IllegalTransition, match="vm/x is migrating: resume is not possible now") as told:
        check_verb("resume", Phase.MIGRATE, "vm/x")
    assert told.value.details["phase"] == "Migrate", "programs get the phase itself"
    assert [describe_phase(phase) for phase in Phase if describe_phase(phase) == phase] == [
        *("Pending", "Rejected", "Running", "Suspended", "Stopped", "Done", "Failed", "Unknown")
    ]
    assert describe_phase("Starting") == "Starting", "of another kind"


def test_the_legal_verbs_are_those_that_lead_on() -> None:
    assert legal_verbs(Phase.STOPPED) == ["restart", "start", "delete"]
    assert legal_verbs(Phase.RUNNING) == ["console", "exec", "restart", "stop", "suspend", "delete"]
    assert legal_verbs(Phase.HOLD) == ["release", "delete"]
