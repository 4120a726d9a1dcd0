"""Arrival: a VM of a linked cluster that migrates here, running. That cluster creates it over the link, and reads it; the server
makes the VM in the same commit, and its target on a node here waits for the guest.

Each cluster decides only for itself: this one says durably that the guest runs here (Arrived), or that it never ran (neverRan).
Until the other cluster has taken note of either, which ``settle`` says, the object stays."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec

from weft.kinds.fields.cells import AGE, NAME, note, text
from weft.kinds.fields.cluster.link import check_sha256
from weft.kinds.fields.subject import check_subject, split_subject
from weft.kinds.parts.goal import find_ended, reaches
from weft.kinds.parts.nic import DRAWN_MACS, mac_of, read_nic
from weft.kinds.parts.workload import ONCE_IN_SPEC
from weft.kinds.record import Access, Admission, Column, Display, Index, Kind, Lifetime, Object, Stored, Verb, uid_of
from weft.kinds.vm import VmSpec
from weft.objects.envelope import take_from_spec
from weft.objects.errors import IllegalTransition, InvalidInput
from weft.objects.identity import CLUSTER_PREFIX, OWN_LABELS, check_name, object_key
from weft.objects.schema import field, read_strict, words

MOST_WORKLOAD_BYTES = 128 << 10  # user_data alone may have half of it
MOST_DISK_BYTES = 1 << 50
MOST_NICS, MOST_VOLUMES = 8, 16
ARRIVED: Final = "Arrived"
FAILED: Final = "Failed"
CANCELLED: Final = "Cancelled"
OVER = (ARRIVED, FAILED, CANCELLED)
FROM_CLUSTER, FROM_UID = f"{OWN_LABELS}from-cluster", f"{OWN_LABELS}from-uid"  # labels of a VM that arrived
FROM_ARRIVAL = f"{OWN_LABELS}from-arrival"  # label of a volume that was made with such a VM
# Fields of a VM's spec that stay at its old cluster: what is of its place there, and what only its server sets.
LEFT_OUT = (
    *("node", "reservation", "lease", "gang", "hold", "boot", "origin"),
    *("disk", "networks", "run"),
    *ONCE_IN_SPEC,  # an older cluster sends them
)
_MAC = re.compile(r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}")
Uid = Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern="^[A-Za-z0-9.-]+$")]


class ArrivalNic(msgspec.Struct, kw_only=True, frozen=True):
    """An address that the running guest has, and keeps."""

    network: Annotated[str, field("Network here, of the same name", name=True)]
    cidr: Annotated[str, field("Range of that network there", max_length=32)]
    mac: Annotated[str, field("Its MAC", max_length=17)]
    address: Annotated[str, field("Its address", max_length=15)]


class ArrivalSpec(msgspec.Struct, kw_only=True):
    of: Annotated[str, field("What migrates here: vm/NAME", change="never")]
    origin: Annotated[Uid, field("uid of the VM where it was made", change="never")]
    key: Annotated[Uid, field("Key of the migration there, the same at both ends", change="never")]
    workload: Annotated[dict[str, Any], field("Spec of the VM there", change="never")] = {}
    disk: Annotated[int, field("Size of its root disk", change="never", quantity="bytes", ge=0, le=MOST_DISK_BYTES)] = 0
    volumes: Annotated[dict[str, int], field("Sizes of its volumes in bytes, by name", change="never")] = {}
    nics: Annotated[list[ArrivalNic], field("The addresses that its guest has", change="never")] = []
    image: Annotated[str, field("SHA-256 digest of its image", change="never", max_length=64)] = ""
    node: Annotated[str, field("Its node there", change="never", name=True)]
    node_uid: Annotated[Uid, field("uid of that node: nobody else may send it", change="never")]
    allocation: Annotated[Uid, field("uid of its allocation there", change="never")]
    incarnation: Annotated[int, field("Incarnation of that allocation", change="never", ge=0, le=1 << 40)] = 0
    machine: Annotated[str, field("Machine type that it runs on, with its version", change="never", max_length=64)] = (
        "q35"
    )
    cpu_model: Annotated[str, field("CPU model that it runs on", change="never", max_length=64)] = ""
    bytes_per_second: Annotated[
        int, field("Limit on the transfer rate, per second; 0 means no limit", change="never", quantity="bytes", ge=0)
    ] = 0
    pause_ms: Annotated[int, field("Longest downtime to aim for, in milliseconds", change="never", ge=1, le=60_000)] = (
        300
    )
    timeout_seconds: Annotated[
        float, field("Timeout, after which it is given up here", change="never", quantity="duration", ge=1, le=86_400)
    ] = 600.0


class ArrivalActions(msgspec.Struct, kw_only=True):
    cancel: Annotated[bool, field("Take nothing in")] = False
    settled: Annotated[bool, field("The other cluster knows how it ended")] = False


class ArrivalStatus(msgspec.Struct, kw_only=True):
    phase: Annotated[
        str, words("Pending", "Preparing", "Waiting", "Migrating", "Switching", ARRIVED, FAILED, CANCELLED)
    ] = "Pending"
    vm: str = ""  # uid of the VM here
    node: str = ""  # where its target is
    node_uid: str = ""
    allocation: str = ""  # uid of that allocation
    address: str = ""  # host:port of the target's listener, once it listens
    pause_ms: int = 0  # as the target has measured it
    never_ran: bool = False  # the guest surely never ran here, and never will by this arrival
    ending: Annotated[str, words("", FAILED, CANCELLED)] = ""  # the phase once nothing of it is left
    ended_at: float | None = None
    reason: str = ""
    message: str = ""


def check_arrival(spec: ArrivalSpec) -> None:
    """Raises InvalidInput."""
    check_subject(spec.of, "spec.of", ("vm",), "arrivals are of")
    check_name(spec.node, "spec.node")
    if spec.image:
        check_sha256(spec.image, "spec.image")
    if len(msgspec.json.encode(spec.workload)) > MOST_WORKLOAD_BYTES:
        raise InvalidInput(f"spec.workload is larger than {MOST_WORKLOAD_BYTES >> 10} KiB", field="spec.workload")
    if len(spec.nics) > MOST_NICS or len(spec.volumes) > MOST_VOLUMES:
        raise InvalidInput(f"spec: at most {MOST_NICS} NICs and {MOST_VOLUMES} volumes", field="spec")
    for index, nic in enumerate(spec.nics):
        check_name(nic.network, f"spec.nics[{index}].network")
        read_nic(f"{nic.network}:{nic.address}", f"spec.nics[{index}].address")
        if not _MAC.fullmatch(nic.mac) or not (nic.mac.startswith(DRAWN_MACS) or nic.mac == mac_of(nic.address)):
            raise InvalidInput(
                f"spec.nics[{index}].mac: {nic.mac!r} is not a MAC that weft gives to {nic.address}",
                field=f"spec.nics[{index}].mac",
                hint=f"it begins with {DRAWN_MACS}, or is that of a chosen address",
            )
    if len({(nic.network, nic.mac) for nic in spec.nics}) < len(spec.nics):
        raise InvalidInput("spec.nics: two in a network have the same MAC", field="spec.nics")
    for name, length in spec.volumes.items():
        check_name(name, "spec.volumes")
        if not 1 <= length <= MOST_DISK_BYTES:
            raise InvalidInput(f"spec.volumes.{name}: {length} bytes can't be a disk's size", field="spec.volumes")


def name_source(creator: str) -> str:
    """The name here of the cluster that made an arrival."""
    return creator.removeprefix(CLUSTER_PREFIX)


def make_arriving_vm(name: str, spec: ArrivalSpec, cluster: str, labels: Mapping[str, str]) -> dict[str, Any]:
    """The manifest of the VM that the arrival ``name`` of ``cluster`` makes. Raises InvalidInput for a workload that isn't a VM's
    spec of this release."""
    kept = {key: value for key, value in spec.workload.items() if key not in LEFT_OUT}
    read_strict({**kept, "disk": spec.disk, "networks": spec.workload.get("networks") or []}, VmSpec, "spec.workload")
    own = {key: value for key, value in labels.items() if not key.startswith(OWN_LABELS)}
    return {
        "kind": "vm",
        "name": split_subject(spec.of)[1],
        "labels": {**own, FROM_CLUSTER: cluster, FROM_UID: spec.origin},
        "spec": {
            **kept,
            "disk": spec.disk,
            "networks": list_networks(spec),
            "volumes": list(spec.volumes),
            "run": "run",
        },
        "marks": {"arrives": name},
    }


def list_networks(spec: ArrivalSpec) -> list[str]:
    """The networks of the VM's spec: an address that people chose stays chosen, others are kept by their endpoints."""
    chosen = {nic.network for nic in map(read_nic, spec.workload.get("networks") or ()) if nic.address is not None}
    return [
        f"{nic.network}:{nic.address}" if nic.network in chosen and nic.mac == mac_of(nic.address) else nic.network
        for nic in spec.nics
    ]


def make_arriving_volumes(name: str, spec: ArrivalSpec) -> list[dict[str, Any]]:
    """The manifests of the volumes that the arrival ``name`` makes with its VM."""
    labels = {FROM_ARRIVAL: name}
    return [
        {"kind": "volume", "name": volume, "labels": labels, "spec": {"size": size}}
        for volume, size in spec.volumes.items()
    ]


def _cancel(obj: Object, _: Any) -> dict[str, Any]:
    phase = (obj.get("status") or {}).get("phase", "Pending")
    if phase == ARRIVED:
        raise IllegalTransition(
            f"arrival/{obj['name']}: {obj['spec']['of']} runs here already",
            reason="hasArrived",
            hint=f"migrate it back: weft vm migrate {split_subject(obj['spec']['of'])[1]} --to-cluster CLUSTER",
        )
    return {"cancel": True}


def _settle(obj: Object, _: Any) -> dict[str, Any]:
    phase = (obj.get("status") or {}).get("phase", "Pending")
    if phase not in OVER:
        raise IllegalTransition(
            f"arrival/{obj['name']} is {phase}: it isn't over", hint="cancel it, or wait until it has arrived"
        )
    return {"settled": True}


ARRIVALS_BY_UID = Index("arrivals by uid")
ARRIVALS_BY_KEY = Index("arrivals by the key of their migration")
ARRIVALS_BY_WORKLOAD = Index("arrivals by workload")
ARRIVALS_BY_CLUSTER = Index("arrivals by name of their cluster")


def workload_key(arrival: Stored) -> str:
    """The key of the VM here."""
    return object_key("vm", arrival.envelope.project, split_subject(arrival.spec(ArrivalSpec).of)[1])


ARRIVAL = Kind(
    name="arrival",
    plural="arrivals",
    title="arrival",
    summary="VMs that migrate here from a linked cluster",
    spec=ArrivalSpec,
    actions=ArrivalActions,
    status=ArrivalStatus,
    schema=2,
    upgrades=(take_from_spec(actions=ArrivalActions),),
    indexes={
        ARRIVALS_BY_UID: uid_of,
        ARRIVALS_BY_KEY: lambda item: (item.spec(ArrivalSpec).key,),
        ARRIVALS_BY_WORKLOAD: lambda item: (workload_key(item),),
        ARRIVALS_BY_CLUSTER: lambda item: (name_source(item.envelope.creator),),
    },
    verbs=(
        Verb("cancel", "Take the VM in no more; it stays where it runs", act=_cancel, needs="operate"),
        Verb(
            "settle",
            "Forget it, since the other cluster knows how it ended",
            act=_settle,
            needs="operate",
            for_its_cluster=True,
            while_deleted=True,
        ),
    ),
    access=Access(readers="project", status_writer="arrivals"),
    admission=Admission(check=check_arrival),
    display=Display(
        topic="Clusters",
        columns=(
            NAME,
            Column("OF", text("spec.of")),
            Column("PHASE", text("status.phase", "Pending"), keep=True),
            Column("CLUSTER", lambda obj: name_source(str(obj.get("created_by") or ""))),
            Column("NODE", text("status.node")),
            AGE,
            Column("NOTE", note, flexible=True),
        ),
    ),
    lifetime=Lifetime(
        goals={"create": reaches(ARRIVED, ends_refused=False), "cancel": reaches(CANCELLED, ends_refused=False)},
        find_failure=find_ended(OVER),
        finalizers=("arrival",),
    ),
)
