"""A VM under any order of people's verbs and the controllers' moves, at the real API servers, held to the one table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from tests.long import examples
from tests.scenario.api_lab import ApiLab, make_image, make_vm

from weft.objects.errors import AlreadyExists, IllegalTransition, InUse, NotFound, WeftError
from weft.objects.lifecycle import ALLOWED, SO_ALREADY, TRANSITIONS, Phase, describe_phase, legal_verbs

VERBS = sorted(verb for verb in ALLOWED if verb not in ("exec", "console"))
DESIRED = ("run", "hold")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiLab]:
    lab = ApiLab(tmp_path_factory.mktemp("machine"))
    lab.client.create(make_image())
    yield lab
    lab.close()


class OneVm(RuleBasedStateMachine):
    """``spec`` and ``generation`` are as the last answer told them."""

    lab: ClassVar[ApiLab]
    count: ClassVar[int] = 0

    @initialize()
    def create(self) -> None:
        type(self).count += 1
        self.name = f"vm{self.count}"
        self.make()

    @precondition(lambda self: self.gone)
    @rule()
    def make(self) -> None:
        made = self.lab.client.create(make_vm(self.name))
        self.phase, self.spec, self.generation = Phase.PENDING, made["spec"], made["generation"]
        self.starts = made["actions"]["restart_generation"]
        self.deleting = self.gone = False

    @precondition(lambda self: not self.gone)
    @rule(verb=st.sampled_from(VERBS))
    def ask(self, verb: str) -> None:
        legal = self.phase in ALLOWED[verb] or self.phase in SO_ALREADY.get(verb, ())
        try:
            answer = self.lab.client.verb("vm", self.name, verb)
        except IllegalTransition as refusal:
            assert self.deleting or not legal, refusal.message
            if not self.deleting:
                assert (
                    refusal.details["legal"] == legal_verbs(self.phase)
                    and describe_phase(self.phase) in refusal.message
                )
            return
        except (InUse, NotFound) as refusal:
            assert self.deleting, refusal.message
            return
        assert legal and not self.deleting
        changed = {key for key in answer["spec"] if answer["spec"][key] != self.spec[key]}
        starts = answer["actions"]["restart_generation"]
        is_other = bool(changed) or starts != self.starts
        assert changed <= set(DESIRED) and answer["generation"] == self.generation + is_other
        if verb in ("hold", "release"):
            assert answer["spec"]["hold"] is (verb == "hold")
        else:
            desired = {"stop": "stop", "suspend": "suspend"}.get(verb, "run")
            assert answer["spec"]["run"] == desired and starts >= self.starts
            assert starts == self.starts + 1 if verb == "restart" else True
        self.spec, self.generation, self.starts = answer["spec"], answer["generation"], starts

    @precondition(lambda self: not self.gone)
    @rule(verb=st.sampled_from(VERBS))
    def try_dry(self, verb: str) -> None:
        answer = self.lab.client.http.request("POST", f"/v1/projects/default/vms/{self.name}:{verb}?dry_run=1", {})
        assert answer.status in (200, 409)

    @precondition(lambda self: not self.gone and TRANSITIONS[self.phase])
    @rule(data=st.data())
    def migrate(self, data: Any) -> None:
        """What the controllers tell of the guest."""
        self.phase = data.draw(st.sampled_from(sorted(TRANSITIONS[self.phase])))
        stored = self.lab.stored(f"/vm/default/{self.name}")
        assert stored is not None
        status = {**msgspec.json.decode(stored.status), "phase": self.phase, "observed_generation": stored.generation}
        stored.status = msgspec.Raw(msgspec.json.encode(status))
        self.lab.put(stored)

    @precondition(lambda self: not self.gone)
    @rule()
    def make_again(self) -> None:
        with pytest.raises((AlreadyExists, InUse)):
            self.lab.client.create(make_vm(self.name))

    @precondition(lambda self: not self.gone and self.phase not in (Phase.PENDING, Phase.HOLD))
    @rule()
    def delete(self) -> None:
        self.deleting = True
        assert self.lab.client.delete("vm", self.name)["deleting_since"] is not None

    @precondition(lambda self: self.deleting and not self.gone)
    @rule()
    def let_go(self) -> None:
        """The workload controller has taken everything away."""
        stored = self.lab.stored(f"/vm/default/{self.name}")
        assert stored is not None
        stored.finalizers = []
        self.lab.put(stored)
        self.lab.client.delete("vm", self.name)
        self.gone = True

    @invariant()
    def the_api_shows_what_it_answered(self) -> None:
        try:
            found = self.lab.client.get("vm", self.name)
        except NotFound:
            assert self.gone
            return
        except WeftError:
            raise
        assert not self.gone and found["spec"] == self.spec and found["generation"] == self.generation
        assert found["status"]["phase"] == self.phase and (found["deleting_since"] is not None) == self.deleting


def test_any_order_of_verbs_and_moves_keeps_to_the_table(lab: ApiLab) -> None:
    OneVm.lab = lab
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        OneVm,
        settings=settings(
            max_examples=examples(25),
            stateful_step_count=20,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
