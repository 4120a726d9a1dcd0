"""Quota: how much all objects of a project may have together, and those of each user in it, as the fabric's administrators granted
it. Each object counts from its creation until it is gone, whether it runs or not; its kind says how much (``Admission.counts``). It
counts in two accounts: the project's, and that of its creator, though others change it later."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import msgspec

from weft.kinds.fields.cells import AGE, NAME, dig
from weft.kinds.record import Access, Admission, Column, Counted, Display, Kind, Object, Reference
from weft.objects.errors import Forbidden, InvalidInput, Throttled
from weft.objects.identity import check_name, object_key
from weft.objects.quantity import format_bytes
from weft.objects.schema import field

REASON = "quotaExceeded"  # of jobs and conversions too
PASSING_FIELDS = ("function_concurrency", "requests_per_second")  # no object counts in them
FIELDS = ("cpu", "memory", "disk", "gpus", "instances", "published_ports")
SIZES = ("memory", "disk")
PROJECT = ""  # the account of all objects of a project; the others are called as their users
MOST_USERS = 200  # with limits of their own
MOST_SHOWN_USERS = 1000  # in the status
_MOST_SAID = 10  # excesses in one sentence
_TOKEN = "token:"
_DIGITS = 3  # as exact as cores and shares of GPUs are written
_SPEC_FIELDS = {"disk": ("disk", "size"), "published_ports": ("publish",), "instances": ("ready",)}
_MOST = 10**9


Count = Annotated[int, msgspec.Meta(ge=0, le=_MOST)]
Rate = Annotated[int, msgspec.Meta(ge=1, le=_MOST)]
Share = Annotated[float, msgspec.Meta(ge=0, le=_MOST)]


class Limits(msgspec.Struct, kw_only=True):
    """A field without a value has no limit."""

    cpu: Annotated[float | None, field("Limit on cores", quantity="cpu")] = None
    memory: Annotated[int | None, field("Limit on memory", quantity="bytes")] = None
    disk: Annotated[int | None, field("Limit on root disks and volumes together", quantity="bytes")] = None
    gpus: Annotated[Share | None, field("Limit on GPUs; a share of one counts as that share")] = None
    instances: Annotated[
        Count | None, field("Limit on VMs, containers, tasks, and instances that functions keep ready")
    ] = None
    published_ports: Annotated[Count | None, field("Limit on published ports")] = None


class AccountLimits(Limits, msgspec.Struct, kw_only=True):
    soft: Annotated[Limits, field("Limits beyond which there is only a warning")] = msgspec.field(
        default_factory=Limits
    )


class QuotaSpec(AccountLimits, msgspec.Struct, kw_only=True):
    function_concurrency: Annotated[
        Count | None, field("Limit on invocations of all functions that run in parallel; each gateway counts its own")
    ] = None
    requests_per_second: Annotated[
        Rate | None, field("Limit on requests to the API that name the project; each API server counts its own")
    ] = None
    per_user: Annotated[
        AccountLimits,
        field("Limits on what each user has created in the project; a token without a user counts as one"),
    ] = msgspec.field(default_factory=AccountLimits)
    users: Annotated[
        dict[str, AccountLimits],
        field(
            "Limits of single users, by name, each in place of the one in per_user; token:NAME is a token without a user"
        ),
    ] = {}

    @property
    def limits_users(self) -> bool:
        """Whether it has limits of users at all."""
        return bool(self.users) or self.per_user != AccountLimits()

    def limits_of(self, user: str) -> AccountLimits:
        """Limits of one user."""
        own = self.users.get(user)
        if own is None:
            return self.per_user
        return AccountLimits(**_merge(own, self.per_user), soft=Limits(**_merge(own.soft, self.per_user.soft)))

    def accounts_of(self, user: str) -> list[tuple[str, AccountLimits]]:
        """The accounts in which an object counts that ``user`` created ("": nobody), with their limits."""
        return [(PROJECT, self), *([(user, self.limits_of(user))] if user else [])]


class QuotaStatus(msgspec.Struct, kw_only=True):
    used: dict[str, int | float] = {}  # by field; what isn't there is 0
    used_by_user: dict[str, dict[str, int | float]] = {}  # where users have limits; of MOST_SHOWN_USERS at most


class Excess(msgspec.Struct, frozen=True):
    """A limit that is too low."""

    field: str
    used: float
    requested: float  # more
    limit: float
    account: str = PROJECT


@functools.lru_cache(1000)
def quota_key(project: str | None) -> str:
    """The key of a project's quota."""
    return object_key(QUOTA.name, project, QUOTA.admission.only_name)


def resolve(counted: Counted, image_sizes: Mapping[str, int]) -> dict[str, float]:
    """The amounts of one object; ``image_sizes`` in bytes, by name."""
    amounts = dict(counted.amounts)
    if counted.image:
        amounts["disk"] = max(amounts.get("disk", 0), image_sizes.get(counted.image, 0))
    return amounts


def add_up(amounts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """All of them together, by field."""
    total: dict[str, float] = dict.fromkeys(FIELDS, 0)
    for one in amounts:
        for name, amount in one.items():
            total[name] += amount
    return {name: _exact(amount) for name, amount in total.items()}


def add_up_accounts(amounts: Iterable[tuple[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """All of them together, by account and field, given each one's user."""
    by_user: dict[str, list[Mapping[str, float]]] = {}
    for user, one in amounts:
        by_user.setdefault(user, []).append(one)
    totals = {user: add_up(of_user) for user, of_user in by_user.items()}
    totals[PROJECT] = add_up(list(totals.values()))  # with those of nobody
    return totals


def find_growth(limits: Iterable[Limits], before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """How much more ``after`` is than ``before``, of what is limited by one of ``limits`` and grows."""
    limited = {name for one in limits for name in FIELDS if getattr(one, name) is not None}
    grown = {name: _exact(amount - before.get(name, 0)) for name, amount in after.items()}
    return {name: more for name, more in grown.items() if more > 0 and name in limited}


def find_excess(
    limits: Limits, used: Mapping[str, float], requested: Mapping[str, float], account: str = PROJECT
) -> list[Excess]:
    """The limits that ``requested`` more than ``used`` would exceed. Nothing is refused that requests none of what is limited,
    however much is used: a quota may be lowered."""
    found = []
    for name in FIELDS:
        limit, more, has = getattr(limits, name), requested.get(name, 0), used.get(name, 0)
        if limit is not None and more > 0 and _exact(has + more) > limit:
            found.append(Excess(name, _exact(has), _exact(more), limit, account))
    return found


def find_over(limits: Limits, used: Mapping[str, float], account: str = PROJECT) -> list[Excess]:
    """The limits that are exceeded."""
    pairs = [(name, getattr(limits, name), used.get(name, 0)) for name in FIELDS]
    return [Excess(name, has, 0, limit, account) for name, limit, has in pairs if limit is not None and has > limit]


def count_fitting(limits: Limits, used: Mapping[str, float], one: Mapping[str, float], most: int) -> int:
    """How many times ``one`` fits beside ``used``, up to ``most``."""
    for name, amount in one.items():
        limit = getattr(limits, name)
        if limit is not None and amount > 0:
            # In whole thousandths: 0.3 is 3 times 0.1.
            free = round((limit - used.get(name, 0)) * 10**_DIGITS)
            most = min(most, max(0, free // max(1, round(amount * 10**_DIGITS))))
    return most


def describe_excess(project: str | None, excess: Iterable[Excess]) -> str:
    """``project lab: cpu: 1.5 of 2 cores used, 1 more requested``, ``project lab, user ann: …``"""
    found, said = list(excess), []
    for account, group in itertools.groupby(found[:_MOST_SAID], lambda one: one.account):
        whose = f", {describe_user(account)}" if account else ""
        said.append(f"project {project}{whose}: {'; '.join(map(_describe, group))}")
    rest = len(found) - _MOST_SAID
    return "; ".join(said) + (f"; and {rest} more" if rest > 0 else "")


def describe_user(account: str) -> str:
    """``user ann``, ``token ci``"""
    token = account.removeprefix(_TOKEN)
    return f"token {token}" if token != account else f"user {account}"


def _describe(one: Excess) -> str:
    used, limit, more = (format_amount(one.field, number) for number in (one.used, one.limit, one.requested))
    unit = " cores" if one.field == "cpu" else ""
    return f"{one.field}: {used} of {limit}{unit} used" + (f", {more} more requested" if one.requested else "")


def exceeded(project: str | None, excess: list[Excess], spec: Any) -> Forbidden:
    """The error for a change that an account of a project's quota has no amounts left for; ``spec`` as people wanted it."""
    account, show = excess[0].account, f"weft quota show -p {project}"
    names = _SPEC_FIELDS.get(excess[0].field, (excess[0].field,))
    found = next((name for name in names if hasattr(spec, name)), None)
    return Forbidden(
        describe_excess(project, excess),
        reason="quotaExceeded",
        field=None if found is None else f"spec.{found}",
        hint=f"delete what {describe_user(account)} doesn't need, or have the limit raised; {show} --user {account}"
        if account
        else show,
        details={part: {one.field: getattr(one, part) for one in excess} for part in ("used", "requested", "limit")}
        | ({"user": account} if account else {}),
    )


def busy(project: str, name: str, used: int, limit: int, seconds: float = 1.0) -> Throttled:
    """The error for one request more than the field ``name``, one of PASSING_FIELDS, allows now."""
    return Throttled(
        f"project {project}: {name}: {used} of {limit} used, 1 more requested",
        reason=REASON,
        hint=f"try again in a moment, or have the limit raised; weft quota show -p {project}",
        details={"used": {name: used}, "requested": {name: 1}, "limit": {name: limit}},
        retry_after_seconds=seconds,
    )


def format_amount(name: str, amount: float) -> str:
    """An amount of the quota's field ``name``, as people read it."""
    return format_bytes(amount) if name in SIZES else f"{amount:g}"


def _is_token(account: str) -> bool:
    return account.startswith(_TOKEN)


def _merge(own: Limits, others: Limits) -> dict[str, Any]:
    """The limits of ``own``, and where it has none those of ``others``."""
    values = {name: getattr(own, name) for name in FIELDS}
    return {name: getattr(others, name) if value is None else value for name, value in values.items()}


def _check_users(spec: QuotaSpec) -> None:
    """Refuse names that no user has, and leave out users without a limit."""
    for user in spec.users:
        check_name(user.removeprefix(_TOKEN), "spec.users")
    spec.users = {user: limits for user, limits in spec.users.items() if limits != AccountLimits()}
    if len(spec.users) > MOST_USERS:
        raise InvalidInput(
            f"spec.users: {len(spec.users)} users are too many",
            field="spec.users",
            hint=f"at most {MOST_USERS} have limits of their own; spec.per_user limits each of the others",
        )


def _list_crossed(spec: QuotaSpec) -> dict[str, str]:
    """The fault of the soft limits that are above the limit itself, by field."""
    each, found = "spec.per_user", dict[str, str]()
    users = [(f"spec.users.{user}", own, spec.limits_of(user)) for user, own in spec.users.items()]
    for place, own, whole in (("spec", spec, spec), (each, spec.per_user, spec.per_user), *users):
        for name in FIELDS:
            limit, soft = getattr(whole, name), getattr(whole.soft, name)
            if limit is not None and soft is not None and soft > limit:
                at = f"{each if getattr(own.soft, name) is None else place}.soft.{name}"
                above = f"{each if getattr(own, name) is None else place}.{name}"
                found[at] = f"{at}: {format_amount(name, soft)} is above {above}, {format_amount(name, limit)}"
    return found


def _check_soft(spec: QuotaSpec) -> None:
    _check_soft_change(QuotaSpec(), spec)


def _check_soft_change(old: QuotaSpec, spec: QuotaSpec) -> None:
    """Refuse soft limits that can never warn, but for those that an older weft let in. Raises InvalidInput."""
    known = _list_crossed(old)
    for at, wrong in _list_crossed(spec).items():
        if wrong != known.get(at):
            raise InvalidInput(wrong, field=at, hint="give a soft limit below the limit itself, or raise that one")


def _exact(amount: float) -> float:
    """Remove what adding fractions leaves behind."""
    rounded = round(amount, _DIGITS)
    return int(rounded) if rounded == int(rounded) else rounded


def _cell(name: str) -> Column:
    def value(obj: Object) -> str:
        limit = dig(obj, f"spec.{name}")
        if limit is None:
            return "–"
        used = dig(obj, f"status.used.{name}", 0)
        return f"{format_amount(name, used)} / {format_amount(name, limit)}"

    return Column("PORTS" if name == "published_ports" else name.upper(), value, align="right")


def _users_cell(obj: Object) -> str:
    spec = msgspec.convert(dig(obj, "spec", {}), QuotaSpec)
    limited = ["each"] if spec.per_user != AccountLimits() else []
    return ", ".join(limited + ([f"{len(spec.users)} own"] if spec.users else [])) or "–"


QUOTA = Kind(
    name="quota",
    plural="quotas",
    title="quota",
    summary="How much a project and its users may use",
    spec=QuotaSpec,
    status=QuotaStatus,
    references=(
        Reference("user", "spec.users", lambda spec: [one for one in spec.users if not _is_token(one)], blocks=False),
        Reference(
            "token",
            "spec.users",
            lambda spec: [one.removeprefix(_TOKEN) for one in spec.users if _is_token(one)],
            blocks=False,
        ),
    ),
    access=Access(
        readers="project",
        granted=True,
        status_writer="quotas",
        condition_writers={"WithinSoftLimits": "quotas"},
    ),
    admission=Admission(
        check=_check_users, check_new=_check_soft, check_change=_check_soft_change, only_name="project"
    ),
    display=Display(
        topic="People and projects",
        columns=(NAME, *(_cell(name) for name in FIELDS), Column("USERS", _users_cell), AGE),
    ),
)
