"""Published TCP ports where one workload takes another's place: the nodes of both ask the guests for them meanwhile. Where the
one before answered, the next one has to answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from msgspec.structs import replace

from weft.controllers.allocation.active import active_allocation
from weft.informer.commit import Draft, edit, put, unchanged
from weft.informer.view import Item, View
from weft.informer.workloads import spec_of
from weft.kinds.allocation import ALLOCATIONS_BY_WORKLOAD, AllocationReport, AllocationSpec
from weft.kinds.fields.service.readiness import MOST_CHECKED, name_port
from weft.kinds.parts.workload import parse_publish
from weft.objects.envelope import merge_part

LOOK_SECONDS = 0.5  # between two looks at what a node has found out
SURE_SECONDS = 3.0  # after which a port that answers nobody serves nothing: one try may fail for other reasons
LATE_SECONDS = 60.0  # after which a node won't say any more: it may be an older weft


def list_ports(holder: Item | None) -> dict[int, str]:
    """The guest's TCP ports that the workload publishes, MOST_CHECKED at most, with what its spec says: ``8391:80``."""
    ports = dict[int, str]()
    for text in spec_of(holder).publish if holder is not None else ():
        _, guest, protocol = parse_publish(text)
        if protocol == "tcp" and len(ports) < MOST_CHECKED:
            ports.setdefault(guest, text)
    return ports


def read_answers(view: View, workload: Item) -> tuple[tuple[int, bool], ...]:
    """Whether each port that its node checks answers, as far as the node has reported it."""
    place = active_allocation(view, workload.uid)
    if place is None:
        return ()
    asked, said = place.spec(AllocationSpec).asked_ports, place.report(AllocationReport).readiness
    return tuple((port, said[name].ready) for port in asked if (name := name_port(port)) in said)


def ask_ports(draft: Draft, view: View, workloads: Iterable[Item], ports: Iterable[int]) -> None:
    """Have the nodes of these workloads ask for these ports, and for no others."""
    asked = sorted(ports)
    for workload in workloads:
        for place in view.find(ALLOCATIONS_BY_WORKLOAD, workload.uid):
            spec = place.spec(AllocationSpec)
            if spec.asked_ports != asked and spec.migration is None and not place.deleting:
                envelope = edit(place)  # not its next generation: the machine has nothing to fit
                envelope.spec = merge_part(envelope.spec, replace(spec, asked_ports=asked))
                draft.writes.append(put(envelope))
                draft.preconditions.append(unchanged(place))


def may_answer_yet(ports: Iterable[int], answers: Mapping[int, bool], seconds: float) -> bool:
    """Whether one of ``ports`` that doesn't answer may do so a moment later: they have been asked for so long."""
    if all(answers.get(port) for port in ports):
        return False
    return 0 <= seconds < (SURE_SECONDS if all(port in answers for port in ports) else LATE_SECONDS)


def describe_silence(lacking: Iterable[int], ports: Mapping[int, str], before: str) -> str:
    """Why a guest doesn't do yet in the place of ``before``."""
    shown = ", ".join(f"{port} (published as {ports[port]})" for port in lacking)
    return f"nothing answers on its TCP port {shown}, where {before} answered"
