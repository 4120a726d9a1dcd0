"""WorkloadProfile: what the history of a workload says of it: cycles, forecasts, a class, what is unusual. NodeProfile: the same of
a node, the sum of its guests. Written by the controller ``profiles`` alone, about once an hour; named ``<kind>.<name>`` of the
workload, or as the node. All lists are bounded, so that a fabric of thousands keeps them."""

from __future__ import annotations

from typing import Annotated

import msgspec

from weft.kinds.fields.cells import AGE, NAME, dig
from weft.kinds.record import Access, Column, Display, Kind, Lifetime, Object
from weft.objects.identity import Ref
from weft.objects.schema import words

MOST_PATTERNS, MOST_EXTREMES, FOLD_POINTS = 3, 4, 48
MOST_CORRELATIONS, MOST_ANOMALIES = 10, 20
CLASSES = ("idle", "steady", "cyclic", "bursty", "batch", "growing", "irregular", "unknown")


class Extreme(msgspec.Struct, frozen=True, kw_only=True):
    """A peak or a trough of a cycle, the next one after ``looked_at``: its moment, and when it begins and ends at half its height.
    Times in unix seconds; they come again every ``cycle_seconds``."""

    at: float
    start: float
    end: float
    value: float  # in the profile's unit


class Pattern(msgspec.Struct, frozen=True, kw_only=True):
    """Something that comes again and again."""

    type: str  # diurnal, weekly, or every 6 h 10 min
    cycle_seconds: float
    confidence: float  # 0–1; 0.7 is the least that is shown, 0.9 the least that anything is done about
    peaks: list[Extreme] = []  # the greatest first
    troughs: list[Extreme] = []
    fold: list[float] = []  # the median cycle in FOLD_POINTS equal parts, in the profile's unit
    fold_at: float = 0.0  # when a cycle begins with the first of them, in unix seconds


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """Prediction for so many seconds after the newest sample; four times in five the value is between ``low`` and ``high``."""

    seconds: float
    value: float
    low: float
    high: float
    method: str


class Signature(msgspec.Struct, frozen=True, kw_only=True, rename={"class_": "class"}):
    """Sort of workload, and how sure that is (0–1)."""

    class_: Annotated[str, words(*CLASSES)] = "unknown"
    probability: float = 0.0


class Correlation(msgspec.Struct, frozen=True, kw_only=True):
    """Correlation with another resource of its own, or the same one of another workload of its project. Rank correlation without
    each one's own memory, so that two walks or two daily cycles aren't related by chance."""

    resource: str  # of this workload
    other: str  # the other resource
    workload: str = ""  # whose: KIND/NAME; "": its own
    correlation: float  # -1 to 1


class Anomaly(msgspec.Struct, frozen=True, kw_only=True):
    """A sample that was unusual, and the range in which 98 % of those before lay."""

    at: float  # unix seconds
    channel: Annotated[str, words("jump", "level", "hour", "spread", "pattern")]
    value: float
    low: float
    high: float
    score: float  # log10 of 2000 over the number of earlier samples that were as new


class ProfileTimes(msgspec.Struct, kw_only=True):
    """The beginning of a profile's status: enough to know when it is due, a tenth of the memory."""

    looked_at: float = 0.0  # unix seconds
    cycles_looked_at: float = 0.0  # when cycles, class and correlations were last looked for
    sampled_at: float = 0.0  # the newest sample that was looked at
    history_seconds: float = 0.0  # from the first to the newest sample, a week at most
    cycles_history_seconds: float = 0.0  # how much there was when cycles were last looked for


class ProfileStatus(ProfileTimes, kw_only=True):
    """``prediction`` by how far ahead: 5m, 1h, 24h. What isn't there has its reason in ``missing``, by field."""

    resource: str = ""  # what the profile is of: cpu, or invocations of a function
    unit: str = ""  # of its values: cores, or 1/s
    full: float = 0.0  # as much as it may use, in ``unit``; 0: nothing says how much
    guests: str = ""  # of a node: a mark of whose sum its cycles are; other guests have another one
    patterns: list[Pattern] = []
    prediction: dict[str, Prediction] = {}
    signature: Signature = Signature()
    stability: float | None = None  # 0–1; 1: what comes is known
    correlations: list[Correlation] = []  # the strongest first
    anomalies: list[Anomaly] = []  # the newest first
    missing: dict[str, str] = {}


class WorkloadProfileSpec(msgspec.Struct, kw_only=True):
    workload: Ref


class NodeProfileSpec(msgspec.Struct, kw_only=True):
    node: Ref


def name_profile(kind: str, name: str) -> str:
    """The name of the profile of a workload."""
    return name if kind == "node" else f"{kind}.{name}"


def _class(obj: Object) -> str:
    found, probability = dig(obj, "status.signature.class", "unknown"), dig(obj, "status.signature.probability", 0.0)
    return f"{found} ({probability:.0%})" if probability else str(found)


def _cycles(obj: Object) -> str:
    return ", ".join(str(one["type"]) for one in dig(obj, "status.patterns", [])) or "–"


def _stability(obj: Object) -> str:
    found = dig(obj, "status.stability")
    return "–" if found is None else f"{found:.2f}"


def _unusual(obj: Object) -> str:
    return str(len(dig(obj, "status.anomalies", [])) or "–")


_COLUMNS = (
    NAME,
    Column("CLASS", _class, keep=True),
    Column("CYCLES", _cycles, flexible=True),
    Column("STABILITY", _stability, align="right"),
    Column("UNUSUAL", _unusual, align="right"),
    AGE,
)

WORKLOAD_PROFILE = Kind(
    name="workloadprofile",
    plural="workloadprofiles",
    title="workload profile",
    summary="What the history of a workload says of it",
    spec=WorkloadProfileSpec,
    status=ProfileStatus,
    access=Access(readers="project", writer="fabric", status_writer="profiles"),
    display=Display(columns=_COLUMNS),
    lifetime=Lifetime(goes_with_owner=True),
)
NODE_PROFILE = Kind(
    name="nodeprofile",
    plural="nodeprofiles",
    title="node profile",
    summary="What the history of a node's guests says of it",
    scope="fabric",
    spec=NodeProfileSpec,
    status=ProfileStatus,
    access=Access(readers="fabric", writer="fabric", status_writer="profiles"),
    display=Display(columns=_COLUMNS),
    lifetime=Lifetime(goes_with_owner=True),
)
