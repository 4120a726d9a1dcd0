"""Work that nodes are ordered to do beside their allocations: a line of ``ORDER_KINDS`` for each kind of it, and a field of
``Orders`` and ``OrderReports``.

An order stands in the object that it is about. It goes to its node with the answers to the node's reports until it is in none any
more, and may be repeated; the node reports on it until then. A report answers the order with the same ``key``.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from weft.kinds.allocation import AllocatedImage
from weft.kinds.fields.backup_work import BackupOrder, BackupReport
from weft.kinds.fields.replication.work import AskOrder, ReceiveOrder, ReceiveReport, SendOrder, SendReport
from weft.kinds.image import ImageSpec, ImageStatus, read_cores
from weft.kinds.parts.image.work import ImageOrder, ImageReport, WarmOrder, WarmReport
from weft.kinds.parts.node.reboot import RebootOrder, RebootReport
from weft.kinds.parts.packages import UpgradeOrder, UpgradeReport
from weft.kinds.parts.snapshot.volume_work import TrimOrder, TrimReport, VolumeOrder, VolumeReport
from weft.kinds.replication import ReplicationStatus
from weft.objects.envelope import Envelope, decode_part


class Keyed(Protocol):
    """An order, or a report on one."""

    @property
    def key(self) -> Hashable: ...


class Order(Keyed, Protocol):
    @property
    def node_uid(self) -> str:
        """Whom it is for; "": all nodes."""


O = TypeVar("O", bound=Order)  # noqa: E741
R = TypeVar("R", bound=Keyed)


@dataclass(frozen=True)
class Source(Generic[O]):
    """Objects of ``kind`` in which orders stand. ``find`` reads the one in an object."""

    kind: str
    find: Callable[[Envelope], O | None]


@dataclass(frozen=True)
class OrderKind(Generic[O, R]):
    """``name``: its field in ``Orders`` and in ``OrderReports``. ``at_once``: how many of them a node works on at one time.
    ``durable``: across restarts a node remembers what became of those that are over; ``remembered``: also of so many that it has no
    order for any more. ``cancels``: what is being done ends when its order changes or goes, rather than being finished."""

    name: str
    order: type[O]
    report: type[R]
    sources: tuple[Source[O], ...]
    at_once: int = 1
    durable: bool = False
    remembered: int = 0
    cancels: bool = True


class Orders(msgspec.Struct, frozen=True, omit_defaults=True):
    """All that a node is ordered to do."""

    backup: list[BackupOrder] = []
    volume: list[VolumeOrder] = []
    trim: list[TrimOrder] = []
    image: list[ImageOrder] = []
    send: list[SendOrder] = []
    ask: list[AskOrder] = []
    receive: list[ReceiveOrder] = []
    warm: list[WarmOrder] = []
    upgrade: list[UpgradeOrder] = []
    reboot: list[RebootOrder] = []


class OrderReports(msgspec.Struct, frozen=True, omit_defaults=True):
    """Reports of a node on the orders that it has."""

    backup: list[BackupReport] = []
    volume: list[VolumeReport] = []
    trim: list[TrimReport] = []
    image: list[ImageReport] = []
    send: list[SendReport] = []
    ask: list[SendReport] = []
    receive: list[ReceiveReport] = []
    warm: list[WarmReport] = []
    upgrade: list[UpgradeReport] = []
    reboot: list[RebootReport] = []


def find_report(reports: Iterable[R], order: Keyed) -> R | None:
    """The report on ``order``."""
    return next((one for one in reports if one.key == order.key), None)


def in_status(kind: str, order: type[O], field: str = "order") -> Source[O]:
    """Orders in a field of the status of objects of ``kind``."""
    part: Any = msgspec.defstruct("StatusPart", [(field, order | None, None)])
    return Source(kind, lambda envelope: getattr(decode_part(envelope.status, part), field))


def find_ask(envelope: Envelope) -> AskOrder | None:
    """The question after a replica, which waits while a point is sent there."""
    status = decode_part(envelope.status, ReplicationStatus)
    return status.ask if status.order is None else None


def find_warm_order(envelope: Envelope) -> WarmOrder | None:
    """Order to nodes about the image with this envelope."""
    spec, status = decode_part(envelope.spec, ImageSpec), decode_part(envelope.status, ImageStatus)
    wanted = spec.warm is not None and status.phase == "Available" and envelope.deleting_since is None
    if not wanted and spec.warm_often:
        return None
    image = AllocatedImage(
        name=envelope.name,
        uid=envelope.uid,
        sha256=status.sha256,
        size=status.size,
        url=f"/v1/blobs/{status.sha256}",
    )
    if spec.warm is None:
        return WarmOrder(image, wanted=False, often=spec.warm_often)
    return WarmOrder(image, spec.warm.memory, *read_cores(spec.warm.cpu), wanted=wanted, often=spec.warm_often)


BACKUP = OrderKind(
    "backup",
    BackupOrder,
    BackupReport,
    tuple(in_status(kind, BackupOrder) for kind in ("backuprepository", "backup", "snapshot")),
    at_once=4,
    durable=True,
)
VOLUME = OrderKind(
    "volume",
    VolumeOrder,
    VolumeReport,
    (in_status("volume", VolumeOrder), in_status("snapshot", VolumeOrder, "volume_order")),
    at_once=2,
    durable=True,
    remembered=256,
    cancels=False,
)
TRIM = OrderKind("trim", TrimOrder, TrimReport, (in_status("volume", TrimOrder, "trim_order"),), at_once=2)
MAKE_IMAGE = OrderKind("image", ImageOrder, ImageReport, (in_status("image", ImageOrder),))
SEND = OrderKind("send", SendOrder, SendReport, (in_status("replication", SendOrder),), at_once=4)
ASK = OrderKind("ask", AskOrder, SendReport, (Source("replication", find_ask),))
RECEIVE = OrderKind("receive", ReceiveOrder, ReceiveReport, (in_status("replica", ReceiveOrder),), at_once=8)
WARM = OrderKind("warm", WarmOrder, WarmReport, (Source("image", find_warm_order),))
UPGRADE = OrderKind("upgrade", UpgradeOrder, UpgradeReport, (in_status("upgrade", UpgradeOrder),))
REBOOT = OrderKind("reboot", RebootOrder, RebootReport, (in_status("upgrade", RebootOrder, "reboot"),))

ORDER_KINDS: tuple[OrderKind[Any, Any], ...] = (
    BACKUP,
    VOLUME,
    TRIM,
    MAKE_IMAGE,
    SEND,
    ASK,
    RECEIVE,
    WARM,
    UPGRADE,
    REBOOT,
)
