"""Published TCP ports in an update of a VM: its node asks the guest for them as long as a rollout is under way. What the version
before answered, the next one has to answer before it is promoted, and a version that comes back before it is back."""

from __future__ import annotations

from msgspec.structs import replace

from weft.controllers.deployment.facts import Instance
from weft.controllers.deployment.instances import Instances
from weft.controllers.workload.ports import LOOK_SECONDS, describe_silence, may_answer_yet
from weft.kinds.fields.deployment.status import DeploymentStatus


def is_asking(status: DeploymentStatus) -> bool:
    """Whether somebody needs to know which ports answer."""
    return status.stage in ("test", "roll") and status.stable > 0


class Ports(Instances):
    """The part of a rollout's plan that is about published ports. Pure."""

    def _demand_ports(self) -> None:
        """Count no instance as healthy that doesn't answer where the version before did."""
        status = self._status
        number = status.revision if status.back else status.stable
        known = next((one.answered for one in status.revisions if one.number == number), None)
        needed = [port for port in known or () if port in self._facts.ports]
        if needed and is_asking(status):
            self._live = [self._judge_ports(one, needed) for one in self._live]

    def _judge_ports(self, one: Instance, needed: list[int]) -> Instance:
        said = dict(one.answers)
        lacking = [port for port in needed if not said.get(port)]
        if one.revision != self._status.revision or one.state != "healthy" or not lacking:
            return one
        if self._status.phase == "Progressing":
            self._requeue(LOOK_SECONDS)
        holder = self._status.holder or self._spec.adopt
        why = (
            f"{describe_silence(lacking, self._facts.ports, 'the version before')}; have a program listen there, or"
            f" publish other ports (weft vm set {holder} --publish …)"
        )
        return replace(one, state="coming", trouble=why, silent=False)

    def _forget_answers(self) -> None:
        """Have the version that serves be asked anew. One whose place is taken already can't be: what it said last counts."""
        status = self._status
        if any(one != status.stable for one in status.slots):
            return
        self._note_answers(None)

    def _note_answers(self, answered: list[int] | None) -> None:
        revisions, stable = self._status.revisions, self._status.stable
        for place, one in enumerate(revisions):
            if one.number == stable:
                revisions[place] = replace(one, answered=answered)

    def _learns(self) -> bool:
        """Whether it isn't known yet which ports the version before answers: until then it keeps its place."""
        status, ports = self._status, self._facts.ports
        before = next((one for one in status.revisions if one.number == status.stable), None)
        if status.back or before is None or before.answered is not None or not ports:
            return False
        old = self._find((status.stable, 0))
        said = dict(old.answers) if old is not None else {}
        since = self._now - (status.started_at or 0.0)
        runs = old is not None and old.state in ("healthy", "unhealthy", "coming")
        lacking = [port for port in ports if not said.get(port)]
        if runs and may_answer_yet(ports, said, since):
            assert old is not None
            self._waits.append(f"asks which of its published ports {old.name} answers")
            self._requeue(LOOK_SECONDS)
            return True
        self._note_answers([port for port in ports if said.get(port)])
        status.progressed_at = self._now
        if lacking:
            shown = ", ".join(str(port) for port in lacking)
            text = f"nothing answered on TCP port {shown} before the update, so the new version need not answer there"
            self._note("Normal", "PortsUnanswered", text)
        return False
