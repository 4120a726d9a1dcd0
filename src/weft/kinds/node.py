"""Node: a machine that runs guests. People cordon it; it reports what it has; the nodes controller folds the rest."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from weft.kinds.cells import AGE, NAME, dig, text
from weft.kinds.record import Column, Kind, Object, Verb
from weft.objects.identity import object_key
from weft.objects.quantity import format_cpu
from weft.objects.schema import field


class NodeSpec(msgspec.Struct, kw_only=True):
    cordoned: Annotated[bool, field("Place nothing new here; what runs stays")] = False
    cordon_reason: Annotated[str, field("Why it is cordoned", max_length=200)] = ""


class NodeStatus(msgspec.Struct, kw_only=True):
    """``phase`` is Joining, Ready, NotReady or Cordoned-free: cordoning is spec's and shown beside it."""

    phase: str = "Joining"
    message: str = ""
    allocated_cpu: float = 0.0
    allocated_memory: int = 0
    allocated_disk: int = 0
    allocations: int = 0
    since: float = 0.0


class NodeReport(msgspec.Struct, kw_only=True):
    """What the node says of itself. ``address`` is its underlay address; ``orphans`` what runs there unexplained, each
    ``<allocation uid> <kind>/<project>/<name> <incarnation>``; ``orphan_allocations`` the node's own copies of their
    allocations, each JSON ``{"uid", "spec"}``; ``volumes`` uids of the volumes whose data lies there; ``epoch`` the
    history (a cursor's part before the colon) of the allocation list that the orphans were found from."""

    version: str = ""
    address: str = ""
    cpu: float = 0.0
    memory: int = 0
    disk: int = 0
    accelerator: str = ""
    hypervisor: str = ""
    kernel: str = ""
    machines: list[str] = []
    capabilities: list[str] = []
    problems: list[str] = []
    orphans: list[str] = []
    orphan_allocations: list[str] = []
    volumes: list[str] = []
    epoch: str = ""
    images: list[str] = []  # sha256 of the images cached there
    boot_id: str = ""


class Orphan(msgspec.Struct, frozen=True):
    """A guest that no allocation explains; ``uid`` is its allocation's, ``key`` its workload's store key."""

    uid: str
    key: str
    incarnation: int


def read_orphan(text_: str) -> Orphan | None:
    """An entry of NodeReport.orphans, or None if it is none that says which workload it is."""
    words = text_.split()
    if len(words) != 3 or words[1].count("/") != 2 or not words[2].isdecimal():
        return None
    kind, project, name = words[1].split("/")
    return Orphan(words[0], object_key(kind, project, name), int(words[2]))


class CordonInput(msgspec.Struct):
    reason: str = ""


def _cordon(obj: Object, given: CordonInput) -> dict[str, Any]:
    return {**obj["spec"], "cordoned": True, "cordon_reason": given.reason}


def _uncordon(obj: Object, _: Any) -> dict[str, Any]:
    return {**obj["spec"], "cordoned": False, "cordon_reason": ""}


def _status(obj: Object) -> str:
    phase = str(dig(obj, "status.phase", "Joining"))
    return "Cordoned" if phase == "Ready" and dig(obj, "spec.cordoned") else phase


def bar(used: float, total: float, width: int = 4) -> str:
    """A small bar in eighths of a block; empty when nothing is used."""
    if total <= 0 or used <= 0:
        return ""
    eighths = max(1, round(min(1.0, used / total) * width * 8))
    return "█" * (eighths // 8) + (" ▏▎▍▌▋▊▉"[eighths % 8] if eighths % 8 else "")


def _cpu(obj: Object) -> str:
    used, total = dig(obj, "status.allocated_cpu", 0), dig(obj, "report.cpu", 0)
    return f"{format_cpu(used)}/{format_cpu(total)} {bar(used, total)}".rstrip()


def _bytes(part: str) -> Any:
    def cell(obj: Object) -> str:
        used, total = dig(obj, f"status.allocated_{part}", 0), dig(obj, f"report.{part}", 0)
        return f"{used / 2**30:.1f}/{total / 2**30:.1f} GiB {bar(used, total)}".rstrip()

    return cell


NODE = Kind(
    name="node",
    plural="nodes",
    title="node",
    summary="A machine that runs guests",
    scope="fabric",
    spec=NodeSpec,
    status=NodeStatus,
    report=NodeReport,
    reported_by_node=True,
    status_writer="nodes",
    kept=("cordoned", "cordon_reason"),
    conditions={"Ready": "nodes"},
    verbs=(
        Verb("cordon", "Place nothing new on it", input=CordonInput, change=_cordon),
        Verb("uncordon", "Let it take new workloads again", change=_uncordon),
    ),
    columns=(
        NAME,
        Column("STATUS", _status),
        Column("CPU", _cpu),
        Column("MEMORY", _bytes("memory")),
        Column("DISK", _bytes("disk")),
        Column("VMS", text("status.allocations", "0"), align="right"),
        Column("VERSION", text("report.version")),
        Column("ADDRESS", text("report.address"), wide=True),
        Column("ACCEL", text("report.accelerator"), wide=True),
        Column("HYPERVISOR", text("report.hypervisor"), wide=True),
        Column("AGE", AGE.value, wide=True),
    ),
)
