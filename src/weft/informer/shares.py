"""Find the objects that a workload names, of its own project or shared by another. Pure."""

from __future__ import annotations

from weft.informer.view import Item, View
from weft.kinds.parts.sharing import is_shared, read_shares
from weft.kinds.parts.workload import WorkloadStatus
from weft.kinds.registry import BY_NAME
from weft.objects.identity import named_key


def find_named(view: View, workload: Item, kind: str, name: str) -> Item | None:
    """The object that ``workload`` names; None if it isn't there, or isn't shared. A workload that was placed before keeps what
    its stored spec names; ``workload`` may have another spec, of a question."""
    project = workload.envelope.project
    item = view.get(named_key(kind, project, name))
    if item is None or "/" not in name or is_shared(read_shares(item.envelope.spec), project):
        return item
    return item if _has_already(view, workload, kind, name) else None


def _has_already(view: View, workload: Item, kind: str, name: str) -> bool:
    stored, record = view.get(workload.key), BY_NAME[workload.envelope.kind]
    if stored is None or stored.uid != workload.uid or stored.status(WorkloadStatus).incarnation == 0:
        return False
    marks = stored.marks(record.marks) if record.marks is not None else None
    parts = stored.spec(record.spec), marks
    return any(name in one.read_names(*parts) for one in record.references if one.kind == kind)


def describe_missing(workload: Item, name: str) -> str:
    """Say for people that ``find_named`` found nothing."""
    return "does not exist" + (f", or is not shared with project {workload.envelope.project}" if "/" in name else "")
