"""The verbs of workloads and nodes that answer with a stream, each once for all kinds that have it.

One more is a ``StreamVerb`` here, a function in ``agent/stream/`` that serves it, and a file in ``cli/verbs/``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

import msgspec

from weft.kinds.fields.lease import AllocatedLease
from weft.kinds.fields.replication.work import MOST_DISKS
from weft.kinds.record import Verb
from weft.objects.errors import InvalidInput, Unavailable
from weft.objects.quantity import format_duration, format_time
from weft.objects.schema import unit

Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
MOST_RANGES = 64
LONGEST_SINCE_SECONDS = 90_000  # of flows that are kept
LEAST_CAPTURE_BYTES, MOST_CAPTURE_BYTES, MOST_CAPTURE_SECONDS = 1024, 1 << 30, 600


class ExecInput(msgspec.Struct):
    argv: list[str]  # run unchanged, without a shell
    env: dict[str, str] = {}
    cwd: str = ""
    tty: bool = False
    # The terminal's size as the command begins; 0: unknown. Later sizes come by the stream.
    rows: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    columns: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0


class ConsoleInput(msgspec.Struct):
    pass


class LogsInput(msgspec.Struct):
    follow: bool = False
    tail: int = -1  # only the last lines; -1: all
    # Only lines of the last seconds; 0: all. A VM's console may give up to 5 s more.
    since: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    # From the node's store of logs, where lines have their times and follow the workload: JSON lines {time, source, message}.
    # The fields below are for this. A node's own log is always given in this form.
    aggregate: bool = False
    until: Annotated[float, msgspec.Meta(ge=0)] = 0.0  # only lines from before so many seconds ago; 0: all
    filter: Annotated[str, msgspec.Meta(max_length=1000)] = ""  # only lines with this text
    regex: Annotated[str, msgspec.Meta(max_length=1000)] = ""  # only lines that this regular expression matches
    deleted: bool = False  # of the newest workload with this name that was deleted


def refuse_filters_alone(given: Any) -> None:
    """Refuse a workload's ``given`` input for its log with a filter that would have no effect. Raises InvalidInput."""
    deleted = getattr(given, "deleted", False)  # functions have no log of theirs that outlives them
    if deleted and given.follow:
        raise InvalidInput("deleted can't be given together with follow: nothing follows", field="input.deleted")
    for field in ("until", "filter", "regex", "deleted"):
        if getattr(given, field, None) and not given.aggregate:
            raise InvalidInput(
                f"{field} chooses only from the lines that the nodes keep, which need aggregate",
                field=f"input.{field}",
                hint=f"set input.aggregate to true, or leave out {field}",
            )


class ForwardInput(msgspec.Struct):
    port: Port  # TCP, of the guest's first NIC
    patience: Annotated[float, msgspec.Meta(ge=0, le=300)] = 0.0  # seconds to retry while nothing listens


class ScreenInput(msgspec.Struct):
    pass


class PortRange(msgspec.Struct, frozen=True):
    first: Port
    last: Port


class FlowsInput(msgspec.Struct):
    protocol: Annotated[str, msgspec.Meta(pattern="^(tcp|udp|icmp|[0-9]{1,3}|)$")] = ""  # "": any
    ports: Annotated[list[PortRange], msgspec.Meta(max_length=MOST_RANGES)] = []  # of either end; none: any
    watch: bool = False  # an answer every ``interval`` seconds, until the client goes
    interval: Annotated[float, msgspec.Meta(ge=0.5, le=60), unit("duration")] = 2.0
    # Folded over the last seconds: sums for each peer, protocol, port and verdict, of the last day; 0: the flows of now. Intervals
    # count whole: minutes of the last two hours, hours of the day.
    since: Annotated[float, msgspec.Meta(ge=0, le=LONGEST_SINCE_SECONDS), unit("duration")] = 0.0


class SamplesInput(msgspec.Struct):
    """The answer is one JSON document: ``{granularity, from, until, series: [{name, unit, points: [[seconds since 1970, value or
    null], …]}]}``, with ``extremes`` also ``min`` and ``max`` of each series, a value for each point. Times are the node's. With
    ``watch`` documents follow, a line each, with the points since the last: its newest point again, which may have changed."""

    time_range: Annotated[float, msgspec.Meta(gt=0)] = 300.0  # seconds
    until: Annotated[float, msgspec.Meta(ge=0)] = 0.0  # the range ends so many seconds ago
    granularity: Annotated[float, msgspec.Meta(ge=0)] = 0.0  # seconds from point to point; 0: the finest that is kept
    series: list[str] = []  # names, or how they begin: nic0; none: all
    extremes: bool = False
    watch: bool = False  # until the client goes; ``until`` is ignored


class ContentsInput(msgspec.Struct):
    """The answer is a line of JSON for each backup in the repository."""


class FilesInput(msgspec.Struct):
    """The answer to ``list`` is a line of JSON for each entry, to ``read`` the content, to ``tree`` a tar archive of a folder; to
    ``objects``, of a backup of a project, its objects as JSON, with secrets that only the server opens again; to ``upload`` the
    code or the model whose SHA-256 is ``path``."""

    act: Literal["list", "read", "tree", "objects", "upload"]
    path: Annotated[str, msgspec.Meta(max_length=4096)] = "/"
    disk: Annotated[str, msgspec.Meta(max_length=253)] = "root"  # or a volume's name
    partition: Annotated[
        int, msgspec.Meta(ge=-1, le=1000)
    ] = -1  # number; 0: the whole disk, -1: the largest that is read


class CaptureInput(msgspec.Struct):
    """The answer is a file as tcpdump writes it, with times in nanoseconds; behind it, as standard error, a JSON document
    ``{packets, bytes, dropped, ended}``: how many packets were too many for the node, and why no more come (asked, seconds, size,
    migrated, gone). The end of the client's input asks for the end."""

    nic: Annotated[int, msgspec.Meta(ge=0, le=31)] = 0  # by its number in the spec
    filter: Annotated[str, msgspec.Meta(max_length=1000)] = ""  # in tcpdump's language; "": every packet
    seconds: Annotated[float, msgspec.Meta(gt=0, le=MOST_CAPTURE_SECONDS), unit("duration")] = 60.0
    # bytes of the file
    size: Annotated[int, msgspec.Meta(ge=LEAST_CAPTURE_BYTES, le=MOST_CAPTURE_BYTES), unit("bytes")] = 10 << 20
    snaplen: Annotated[int, msgspec.Meta(ge=64, le=262_144)] = 262_144  # the first bytes of each packet


class SentDisk(msgspec.Struct, frozen=True, kw_only=True):
    key: Annotated[
        str, msgspec.Meta(min_length=1, max_length=64, pattern="^[a-z0-9-]+$")
    ]  # as the source's pool calls it
    size: Annotated[int, msgspec.Meta(ge=1, le=1 << 50), unit("bytes")]
    whole: bool = False  # all that isn't sent is zero; else it is as in the parent
    former: Annotated[str, msgspec.Meta(max_length=63)] = ""  # the disk's name in the parent, if that is another


class ReceiveInput(msgspec.Struct, kw_only=True):
    """A point of the replica. The client's input is its pieces (``protocol/points.py``), disk after disk by their names; its end is
    the point's. The answer, once the point is kept, is a JSON document ``{number}``."""

    origin: Annotated[str, msgspec.Meta(max_length=64)]  # uid of the replication that sends
    generation: Annotated[int, msgspec.Meta(ge=1, le=1 << 40)]
    source: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]  # uid of the snapshot that is sent
    # uid of the snapshot that the newest point here is a copy of; "": it stands on none, so all its disks are whole
    parent: Annotated[str, msgspec.Meta(max_length=64)] = ""
    disks: Annotated[dict[str, SentDisk], msgspec.Meta(min_length=1, max_length=MOST_DISKS)]
    data: Annotated[int, msgspec.Meta(ge=0, le=1 << 50), unit("bytes")] = 0  # how much will come
    taken_at: Annotated[float, msgspec.Meta(ge=0, le=1e11)] = 0.0  # unix seconds, by the source's clock
    consistency: Annotated[str, msgspec.Meta(max_length=20, pattern="^[a-z]*$")] = ""
    age_seconds: Annotated[float, msgspec.Meta(ge=0, le=1e9)] = 0.0  # of the snapshot, as the stream begins
    final: bool = False  # the VM there was handed over: it has written nothing since


def check_point(given: Any) -> None:
    """Raises InvalidInput for a point on nothing whose disks aren't whole."""
    if not given.parent and not all(disk.whole for disk in given.disks.values()):
        raise InvalidInput(
            "input.disks: a point without a parent has only whole disks",
            field="input.disks",
            hint="send the disks whole",
        )


class StreamVerb(msgspec.Struct, frozen=True):
    name: str
    input: type[msgspec.Struct]
    needs: Literal["operate", "read"]
    reaches: bool = False  # into the guest, not only what is recorded of it
    # What the gateway goes on with at the guest's next node after a migration: a command, or what the guest prints.
    follows: Literal["", "session", "output"] = ""
    audited: bool = False  # the audit log has its input, too
    figures: bool = False  # as Verb.figures
    check: Callable[[Any], None] | None = None  # as Verb.check

    def verb(self, summary: str) -> Verb:
        """The verb of a kind; ``summary`` says what it does there."""
        return Verb(
            self.name, summary, input=self.input, check=self.check, stream=True, figures=self.figures, needs=self.needs
        )


EXEC = StreamVerb("exec", ExecInput, "operate", reaches=True, follows="session")
CONSOLE = StreamVerb("console", ConsoleInput, "operate", reaches=True, follows="output")
FORWARD = StreamVerb("forward", ForwardInput, "operate", reaches=True)
SCREEN = StreamVerb("screen", ScreenInput, "operate", reaches=True)
LOGS = StreamVerb("logs", LogsInput, "read", follows="output", check=refuse_filters_alone)
NODE_LOGS = Verb("logs", "Show what the node's agent logs", input=LogsInput, stream=True, needs="fabric")
FLOWS = StreamVerb("flows", FlowsInput, "read", figures=True)
CAPTURE = StreamVerb("capture", CaptureInput, "operate", audited=True)
METRICS = StreamVerb("metrics", SamplesInput, "read", figures=True)
CONTENTS = Verb("contents", "List the backups in it", input=ContentsInput, stream=True, needs="fabric")
FILES = StreamVerb("files", FilesInput, "operate", audited=True)
RECEIVE = StreamVerb("receive", ReceiveInput, "operate", check=check_point)
STREAM_VERBS = {
    verb.name: verb for verb in (EXEC, CONSOLE, FORWARD, SCREEN, LOGS, FLOWS, CAPTURE, METRICS, FILES, RECEIVE)
}

LOOKS = frozenset({"read", "fabric"})  # the rights of streams that only show what is recorded


def refuse_early(verb: str, lease: AllocatedLease | None, what: str, now: float) -> None:
    """Raises Unavailable (leaseWaits) for a verb that reaches into the guest of ``what`` before its lease begins: it may run."""
    if verb in STREAM_VERBS and STREAM_VERBS[verb].reaches and lease is not None and now < lease.start:
        raise Unavailable(
            f"{what} can't be reached yet: its lease begins at {format_time(lease.start)}, in {format_duration(lease.start - now)}",
            reason="leaseWaits",
            hint=f"weft lease describe {what}",
        )
