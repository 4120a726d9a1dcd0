"""AccountingRecord: what the workloads of one project requested and used over one day, hour by hour, or over one month, day by day;
and, in one more record, how long the newest leases of its users took.

The controller ``accounting`` writes it, and the scheduler the one of newest leases; it outlives the workloads and the project. Days
and months are in UTC.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Literal

import msgspec

from weft.kinds.fields.cells import AGE, NAME, text
from weft.kinds.record import Access, Admission, Column, Display, Kind
from weft.objects.identity import MAX_NAME

HOUR = 3600
DAY = 86400
KEPT_HOURLY_DAYS = 35
KEPT_DAYS = 400
MOST_USERS = 20  # of one project told apart in a record; the others are counted together, under ""

RECENT: Literal["recent"] = "recent"  # the period of the record of newest leases


class AccountingSpec(msgspec.Struct, kw_only=True):
    project: str
    period: Literal["day", "month", "recent"]
    start: float  # unix seconds; of the record of newest leases when it was made


class AccountingEntry(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One hour of a day's record, or one day of a month's. Cores and GPUs times seconds, GiB times seconds."""

    start: float  # unix seconds
    user: str = ""  # who made the workloads; "": unknown
    cpu: float = 0.0
    memory: float = 0.0
    disk: float = 0.0
    gpu: float = 0.0
    used_cpu: float = 0.0
    used_memory: float = 0.0
    used_disk: float = 0.0


class RunTime(msgspec.Struct, frozen=True, array_like=True):
    """Run time of an ended lease; ``extended``: more than was requested when it got its place."""

    seconds: float
    extended: bool = False


AMOUNTS = ("cpu", "memory", "disk", "gpu", "used_cpu", "used_memory", "used_disk")


class AccountingStatus(msgspec.Struct, kw_only=True):
    through: float = 0.0  # unix seconds: all before this is counted
    entries: list[AccountingEntry] = []
    run_times: dict[str, list[RunTime]] = {}  # by user, of leases that ended last: the oldest first


def name_day(project: str, moment: float) -> str:
    """``2026-11-23.web``: the day first, so that the records of one day are one prefix."""
    return f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d}.{project}"


def name_month(project: str, moment: float) -> str:
    return f"{datetime.fromtimestamp(moment, UTC):%Y-%m}.{project}"


def name_recent(project: str) -> str:
    return f"{RECENT}.{project}"


def start_of_day(moment: float) -> float:
    return moment // DAY * DAY


def start_of_month(moment: float) -> float:
    first = datetime.fromtimestamp(moment, UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return first.timestamp()


def list_months(since: float, until: float) -> list[float]:
    """The starts of the months from ``since`` to ``until``."""
    found, month = [], start_of_month(since)
    while month < until:
        found.append(month)
        month = start_of_month((datetime.fromtimestamp(month, UTC) + timedelta(days=32)).timestamp())
    return found


def add_entries(entries: Iterable[AccountingEntry]) -> AccountingEntry:
    """The sum, with the start and user of the first of ``entries``."""
    first, *rest = entries
    total = msgspec.structs.replace(first)
    for one in rest:
        for amount in AMOUNTS:
            setattr(total, amount, getattr(total, amount) + getattr(one, amount))
    return total


ACCOUNTING_RECORD = Kind(
    name="accountingrecord",
    plural="accountingrecords",
    title="accounting record",
    summary="What a project requested and used over a day or a month",
    scope="fabric",
    spec=AccountingSpec,
    status=AccountingStatus,
    access=Access(readers="fabric", writer="fabric", status_writer="accounting"),
    admission=Admission(longest_name=len("2026-11-23.") + MAX_NAME),
    display=Display(
        columns=(
            NAME,
            Column("PROJECT", text("spec.project")),
            Column("PERIOD", text("spec.period"), keep=True),
            AGE,
        ),
    ),
)
