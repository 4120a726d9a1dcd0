"""Function: code that runs when it is invoked. Each invocation is placed by itself, so a function has no allocation and is no
workload: the gateway finds a node for each, and its status shows whether an invocation would work."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

import msgspec

from weft.kinds.fields.cells import AGE, NAME, dig, note, size, text
from weft.kinds.fields.device.affordance import check_topics
from weft.kinds.parts.function_code import (
    FUNCTIONS_BY_NETWORK,
    FunctionCode,
    check_code,
    code_of,
    code_references,
    networks_of_item,
)
from weft.kinds.parts.goal import STUCK, UNPLACEABLE, is_settled, read_phase
from weft.kinds.parts.placement_spec import Name, placement_references
from weft.kinds.parts.stream_verbs import refuse_filters_alone
from weft.kinds.record import (
    Access,
    Admission,
    Claim,
    ClaimWithin,
    Column,
    Counted,
    Display,
    Goal,
    Index,
    Kind,
    Lifetime,
    Object,
    Reference,
    Stored,
    Verb,
)
from weft.objects.envelope import Envelope, take_from_spec
from weft.objects.errors import DriverFailed, IllegalTransition, InvalidInput, Unplaceable, WeftError
from weft.objects.identity import MAX_NAME, check_name
from weft.objects.image.reference import held_name
from weft.objects.quantity import parse_duration
from weft.objects.schedule import check_schedule
from weft.objects.schema import field

AUTO = "auto"
MOST_ALIASES = 32
MOST_SCHEDULES = 16
MOST_LOCAL_NODES = 16
MOST_NAMED_NODES = 64
MOST_READY = 1000
MOST_INPUT_BYTES = 32 * 1024
LONGEST_NAME = MAX_NAME - 7  # leaves seven characters for -123456, the name of a version
_NUMBER = re.compile(r"[1-9]\d{0,5}")

Weights = dict[str, float]  # by version number, as text


class Schedule(msgspec.Struct, kw_only=True):
    cron: Annotated[str, field("Schedule: cron's five fields, or @hourly, @daily, …")]
    zone: Annotated[str, field("Time zone of the schedule")] = "UTC"
    input: Annotated[Any, field("Input of each invocation, as JSON")] = None
    qualifier: Annotated[str, field("Version or alias to invoke; the newest if unset")] = ""


class FunctionSpec(FunctionCode, msgspec.Struct, kw_only=True):
    description: Annotated[str, field("Description, for people", max_length=200)] = ""
    max_concurrent: Annotated[int, field("How many invocations may run in parallel", ge=0, le=100_000)] = 50
    keep_alive: Annotated[
        float | str,
        field(
            "How long an idle instance is kept: a duration, or auto, learnt from past invocations",
            shown="auto or duration",
        ),
    ] = AUTO
    ready: Annotated[
        int | str, field("Instances kept ready ahead of demand: a number, or auto", shown="auto or number")
    ] = AUTO
    retries: Annotated[int, field("Retries of a failed asynchronous invocation", ge=0, le=10)] = 2
    max_age: Annotated[float, field("How long an asynchronous invocation may wait", quantity="duration")] = 6 * 3600.0
    dead_letter: Annotated[
        str | None,
        field(
            "Function that receives the invocations that failed for good; without one they are kept and listed",
            name=True,
        ),
    ] = None
    http: Annotated[
        Literal["none", "token", "open"],
        field("HTTP trigger: none, for callers with a token, or open to everyone"),
    ] = "none"
    schedule: Annotated[list[Schedule], field("Schedules that invoke the function")] = []
    topics: Annotated[
        list[str],
        field("Topics of devices whose messages invoke it: weft/PROJECT/+/event, weft/PROJECT/+/reported/PROPERTY"),
    ] = []
    aliases: Annotated[
        dict[str, int | str | Weights],
        field("Aliases: NAME to a version, or to two versions with their shares: {3: 0.9, 4: 0.1}"),
    ] = {}
    local_nodes: Annotated[
        list[Name],
        field("Nodes that keep the function, and serve it at an address of their own even without the server"),
    ] = []
    local_secret: Annotated[
        str | None,
        field("Secret whose key token callers at these nodes present; --offline, so that nodes may keep it", name=True),
    ] = None


class FunctionActions(msgspec.Struct, kw_only=True):
    published: Annotated[int, field("Number of the newest version", ge=0)] = 0
    pulls: Annotated[int, field("Counter: the image's tag is resolved again when it grows", ge=0)] = 0


class FunctionStatus(msgspec.Struct, kw_only=True):
    """The last ready version of the spec serves until the present one is ready."""

    phase: Literal["Pending", "Preparing", "Ready", "Failed"] = "Pending"
    reason: str = ""  # why the present spec is not ready
    message: str = ""
    waiting_generation: int = 0  # of the spec that waits for that reason; 0: none, or by an older weft
    trace: list[str] = []  # first lines of what its code printed when it failed to start
    digest: str = ""  # digest of the ready recipe
    serving: FunctionCode | None = None  # what that recipe was made of
    image: str = ""  # its image, with the digest that the tag had then
    pulls: int = 0  # how often that had been asked for until then
    version: int = 0  # the last published version
    nodes: list[str] = []  # nodes that have it prepared
    named_nodes: list[
        str
    ] = []  # the last MOST_NAMED_NODES that local_nodes has named: these may still report what ran there
    away_nodes: list[str] = []  # those of local_nodes that sent no heartbeat when this got ready, and still don't
    observed_generation: int = 0


class PublishInput(msgspec.Struct):
    description: Annotated[str, field("What is new in the version", max_length=200)] = ""


class InvokeInput(msgspec.Struct):
    """The event comes over the stream."""

    qualifier: str = ""  # a version or an alias; "": the newest
    client_context: str = ""  # a JSON object for the code
    tail: bool = False  # also return the end of its log
    timeout: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 0.0  # seconds that the caller waits; 0: the function's own
    later: bool = False  # only queue it; it runs when there is capacity


class FunctionLogsInput(msgspec.Struct):
    """First the ``tail`` last lines (-1: all) of the last ``since`` seconds (0: ever); then new ones if ``follow``."""

    follow: bool = False
    tail: int = -1
    since: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    # As JSON lines {time, source, message}; the fields below are for this.
    aggregate: bool = False
    until: Annotated[float, msgspec.Meta(ge=0)] = 0.0  # only lines from before so many seconds ago; 0: all
    filter: Annotated[str, msgspec.Meta(max_length=1000)] = ""  # only lines with this text
    regex: Annotated[str, msgspec.Meta(max_length=1000)] = ""  # only lines that this regular expression matches


class MetricsInput(msgspec.Struct):
    pass


def check_function(spec: FunctionSpec) -> None:
    """Check what types can't say; what has several spellings gets its one. Raises InvalidInput."""
    check_code(spec)
    spec.keep_alive = _read_keep_alive(spec.keep_alive)
    spec.ready = _read_ready(spec.ready)
    if 0 < spec.max_concurrent < (ready_of(spec) or 0):  # 0 pauses the function, and its instances stay ready
        raise InvalidInput(
            f"spec.ready: {spec.ready} instances would be kept ready, and spec.max_concurrent lets only "
            f"{spec.max_concurrent} of them work",
            field="spec.ready",
            hint=f"give at most {spec.max_concurrent}, or raise spec.max_concurrent",
        )
    if not 1 <= spec.max_age <= 7 * 86400:
        raise InvalidInput(f"spec.max_age: {spec.max_age:g} s is out of range", field="spec.max_age", hint="1s to 7d")
    for index, one in enumerate(spec.schedule[: MOST_SCHEDULES + 1]):
        at = f"spec.schedule[{index}]"
        check_schedule(one.cron, one.zone, field=f"{at}.cron", zone_field=f"{at}.zone")
        if len(msgspec.json.encode(one.input)) > MOST_INPUT_BYTES:
            raise InvalidInput(
                f"{at}.input is more than 32 KiB", field=f"{at}.input", hint="let the code fetch larger input"
            )
        if one.qualifier:
            check_qualifier(one.qualifier, f"{at}.qualifier")
    check_topics(spec.topics, "spec.topics")
    _check_local(spec)
    for name, most in (
        ("schedule", MOST_SCHEDULES),
        ("aliases", MOST_ALIASES),
        ("local_nodes", MOST_LOCAL_NODES),
    ):
        if len(getattr(spec, name)) > most:
            raise InvalidInput(f"spec.{name}: at most {most}", field=f"spec.{name}")
    spec.aliases = {name: _read_alias(name, target) for name, target in spec.aliases.items()}


def _claim(envelope: Envelope, spec: FunctionSpec) -> list[Claim | ClaimWithin]:
    """It claims nothing; raises InvalidInput for topics of another project."""
    if spec.topics:
        check_topics(spec.topics, "spec.topics", envelope.project)
    return []


def check_qualifier(text_: str, where: str) -> None:
    """A version's number or an alias's name. Raises InvalidInput."""
    if not _NUMBER.fullmatch(text_):
        check_name(text_, where)


def keep_alive_of(spec: FunctionSpec) -> float | None:
    """Seconds; None: as it is learnt."""
    return None if isinstance(spec.keep_alive, str) else spec.keep_alive


def ready_of(spec: FunctionSpec) -> int | None:
    """How many; None: as it is learnt."""
    return None if isinstance(spec.ready, str) else spec.ready


def weights_of(spec: FunctionSpec, alias: str) -> Weights | None:
    """The versions behind an alias, by number, with shares that come to 1; None if there is no such alias."""
    target = spec.aliases.get(alias)
    return target if isinstance(target, dict) else None


def note_named(status: FunctionStatus, spec: FunctionSpec) -> list[str]:
    """``status.named_nodes`` with those that ``spec`` names."""
    former = [name for name in status.named_nodes if name not in spec.local_nodes]
    return [*former, *spec.local_nodes][-MOST_NAMED_NODES:]


def version_name(function: str, number: int | str) -> str:
    """The name of the FunctionVersion: thumb-3."""
    return f"{function}-{number}"


def _check_local(spec: FunctionSpec) -> None:
    """Both or neither: without a secret everybody at the node could invoke it."""
    if spec.local_nodes and not spec.local_secret:
        raise InvalidInput(
            "spec.local_secret is missing: callers at spec.local_nodes need a token",
            field="spec.local_secret",
            hint="weft secret create NAME --token-stdin --offline, and name it here",
        )
    if spec.local_secret and not spec.local_nodes:
        raise InvalidInput(
            "spec.local_nodes is missing: spec.local_secret is for callers at these nodes",
            field="spec.local_nodes",
            hint="name the nodes, or leave spec.local_secret out",
        )
    if len(set(spec.local_nodes)) != len(spec.local_nodes):
        raise InvalidInput(
            "spec.local_nodes names the same node twice", field="spec.local_nodes", hint="name each one once"
        )


def _read_keep_alive(given: float | str) -> float | str:
    if given == AUTO:
        return given
    seconds = parse_duration(given, "spec.keep_alive")
    if seconds > 86400:
        raise InvalidInput(
            "spec.keep_alive: at most a day", field="spec.keep_alive", hint="write auto, or a duration like 10m"
        )
    return seconds


def _read_ready(given: int | str) -> int | str:
    if given == AUTO:
        return given
    text_ = str(given)
    if not text_.isdecimal() or len(text_) > 6 or int(text_) > MOST_READY:
        raise InvalidInput(
            f"spec.ready: {text_[:40]!r} is not a number of instances",
            field="spec.ready",
            hint=f"write auto, or 0 to {MOST_READY}",
        )
    return int(text_)


def _read_alias(name: str, target: int | str | Weights) -> Weights:
    where = f"spec.aliases.{name[:80]}"
    hint = "write prod: 3, or prod: {3: 0.9, 4: 0.1}"
    if name.isdecimal() or name == "latest":
        raise InvalidInput(f"{where}: not a valid name of an alias", field=where, hint="choose a name like prod")
    check_name(name, where)
    given = target if isinstance(target, dict) else {str(target): 1.0}
    bad = next((number for number in given if not _NUMBER.fullmatch(str(number))), None)
    if bad is not None:
        raise InvalidInput(f"{where}: {bad[:40]!r} is not a version", field=where, hint=hint)
    if not 1 <= len(given) <= 2 or any(not 0 <= share <= 1 for share in given.values()):
        raise InvalidInput(
            f"{where}: an alias takes one version, or two with shares from 0 to 1", field=where, hint=hint
        )
    if abs(sum(given.values()) - 1) > 1e-6:
        raise InvalidInput(f"{where}: the shares come to {sum(given.values()):g}, not to 1", field=where, hint=hint)
    return {number: round(float(share), 6) for number, share in sorted(given.items(), key=lambda one: int(one[0]))}


def _count_version(obj: Object, _: Any) -> dict[str, Any]:
    """Publishes the version that serves now."""
    name, ready = obj["name"], dig(obj, "status.phase") == "Ready"
    if not ready or dig(obj, "status.observed_generation", 0) < obj.get("generation", 0):
        raise IllegalTransition(
            f"function/{name} is not ready ({dig(obj, 'status.phase', 'Pending')}), so there is nothing to publish",
            hint=f"weft wait function/{name} --for=phase=Ready",
        )
    if dig(obj, "status.reason", ""):
        raise IllegalTransition(
            f"function/{name} still serves its previous code, because its last change isn't ready ({dig(obj, 'status.reason')})",
            hint=f"weft describe function/{name}",
        )
    return {"published": dig(obj, "actions.published", 0) + 1}


def _pull(obj: Object, _: Any) -> dict[str, Any]:
    """The digest in an image's name stays what it is."""
    image = dig(obj, "spec.image", "")
    if not image or "@" in image or held_name(image):
        what = "it has no image"
        if image:
            what = f"weft holds its image itself: {image}" if held_name(image) else f"its image is pinned: {image}"
        raise IllegalTransition(
            f"function/{obj['name']} can't look for a newer image: {what}",
            hint=f"weft function set {obj['name']} --image …, or --code …",
        )
    return {"pulls": dig(obj, "actions.pulls", 0) + 1}


def _make_version(obj: Object, given: PublishInput, _: str) -> dict[str, Any]:
    spec = msgspec.convert(obj["spec"], FunctionSpec)
    number = dig(obj, "actions.published", 0) + 1
    more: dict[str, Any] = {"function": obj["name"], "number": number, "description": given.description}
    if spec.image and not held_name(spec.image):  # what weft holds stays what it is
        more["image"] = dig(obj, "status.image", "") or spec.image
    return {
        "kind": "functionversion",
        "name": version_name(obj["name"], number),
        "spec": {**msgspec.to_builtins(code_of(spec)), **more},
    }


def _take_actions(stored: dict[str, Any]) -> dict[str, Any]:
    """Take the actions; whatever runs keeps the image that was found for it."""
    status = dict(stored.get("status") or {})
    if serving := status.get("serving"):
        pulls = serving.get("pulls", 0)
        serving = {name: value for name, value in serving.items() if name != "pulls"}
        status |= {"pulls": pulls, "serving": serving}
    return take_from_spec(actions=FunctionActions)({**stored, "status": status})


def _count(spec: FunctionSpec, _: FunctionStatus) -> Counted:
    """The instances that are always kept ready. The others have only capacity that no workload has."""
    ready = ready_of(spec) or 0
    return Counted({"cpu": ready * spec.cpu, "memory": ready * spec.memory, "instances": ready})


def _versions_named(spec: FunctionSpec) -> list[str]:
    """The numbers of the versions behind its aliases."""
    return sorted({number for target in spec.aliases.values() if isinstance(target, dict) for number in target})


def _serves(obj: Object | None) -> bool:
    """Whether its last change is ready: until then a function serves its previous code, and its status says why."""
    return read_phase(obj) == "Ready" and is_settled(obj) and not dig(obj or {}, "status.reason")


def describe_away(names: Sequence[str]) -> str:
    """Say that nodes of its own serve it later; "": none does."""
    if not names:
        return ""
    if len(names) == 1:
        return f"node {names[0]} sends no heartbeat: it serves this as it is now once it is back"
    return f"nodes {', '.join(names)} send no heartbeat: they serve this as it is now once they are back"


def _remark(obj: Object) -> str:
    return describe_away(dig(obj, "status.away_nodes", []))


_SERVES = Goal(_serves, "Ready", remark=_remark)


def _find_failure(obj: Object, what: str, goal: Goal) -> WeftError | None:
    reason, message, phase = dig(obj, "status.reason", ""), dig(obj, "status.message", ""), read_phase(obj)
    if not reason or not goal.ends_failed:
        return None
    waits_for_this = dig(obj, "status.waiting_generation", 0) in (0, obj.get("generation", 0))
    if not waits_for_this and not is_settled(obj):
        return None  # what kept an earlier spec says nothing of this one
    if reason in STUCK or (phase == "Pending" and reason in UNPLACEABLE):
        why = "can't be prepared yet" if reason in STUCK else "fits on no node"
        hint = f"It is prepared when that is resolved.  weft wait {what} | weft delete {what}"
        return Unplaceable(f"{what} {why}: {message or reason}", reason=reason, hint=hint)
    if phase not in ("Failed", "Ready") or not is_settled(obj):
        return None
    why = "\n".join([note(obj), *map(str, dig(obj, "status.trace", []))])
    failed = "still serves its previous code" if phase == "Ready" else "failed"
    return DriverFailed(f"{what} {failed}: {why}", reason=reason, hint=f"weft describe {what}")


TOPICS_FIT = "TopicsFit"  # the condition that says whether its topics can have messages
FUNCTIONS_OF_DEVICES = Index("functions that messages of devices invoke, by project")


def _invoked_in(item: Stored) -> Iterable[str]:
    return (item.envelope.project or "",) if item.spec(FunctionSpec).topics else ()


def _note(obj: Object) -> str:
    """Its status' words; else which of its nodes are away; else why no device invokes it."""
    unfit = (one for one in obj.get("conditions") or () if one["type"] == TOPICS_FIT and one["status"] == "False")
    return note(obj) or _remark(obj) or next((f"{one['reason']}: {one['message']}" for one in unfit), "")


FUNCTION = Kind(
    name="function",
    plural="functions",
    title="function",
    summary="Code that runs when it is invoked",
    spec=FunctionSpec,
    actions=FunctionActions,
    status=FunctionStatus,
    schema=2,
    upgrades=(_take_actions,),
    indexes={FUNCTIONS_BY_NETWORK: networks_of_item, FUNCTIONS_OF_DEVICES: _invoked_in},
    references=(
        *placement_references(),
        *code_references(),
        Reference("functionversion", "spec.aliases", _versions_named, below=version_name),
        Reference("function", "spec.dead_letter", lambda spec: [spec.dead_letter] if spec.dead_letter else []),
        Reference("node", "spec.local_nodes", lambda spec: spec.local_nodes, blocks=False),
        Reference("secret", "spec.local_secret", lambda spec: [spec.local_secret] if spec.local_secret else []),
    ),
    verbs=(
        Verb(
            "publish",
            "Publish the function's present code and settings as a version",
            input=PublishInput,
            act=_count_version,
            make=_make_version,
            needs="write",
        ),
        Verb("pull", "Use the image that the tag refers to now", act=_pull, needs="operate"),
        Verb("invoke", "Invoke the function once", input=InvokeInput, stream=True, needs="invoke"),
        Verb(
            "logs",
            "Show the function's log",
            input=FunctionLogsInput,
            check=refuse_filters_alone,
            stream=True,
            needs="read",
        ),
        Verb(
            "metrics",
            "Show the function's invocations, errors and durations",
            input=MetricsInput,
            stream=True,
            figures=True,
            needs="read",
        ),
    ),
    in_backups="renamed",
    access=Access(readers="project", status_writer="gateway", condition_writers={TOPICS_FIT: "devices"}),
    admission=Admission(
        claims=_claim,
        check=check_function,
        uploads=lambda spec: [spec.code] if spec.code else [],
        counts=_count,
        longest_name=LONGEST_NAME,
    ),
    display=Display(
        topic="Workloads",
        aliases=("fn",),
        columns=(
            NAME,
            Column("PHASE", text("status.phase", "Pending"), keep=True),
            Column("RUNTIME", lambda obj: dig(obj, "spec.image", "") or dig(obj, "spec.runtime", "–"), flexible=True),
            Column("ISOLATION", text("spec.isolation")),
            Column("MEMORY", size("spec.memory"), align="right"),
            Column("VERSION", lambda obj: str(dig(obj, "actions.published", 0) or "–"), align="right"),
            AGE,
            Column("HTTP", text("spec.http"), wide=True),
            Column("CODE", lambda obj: str(dig(obj, "spec.code", ""))[:12] or "–", wide=True),
            Column("NOTE", _note, flexible=True),
        ),
        progress=text("status.message", ""),
    ),
    lifetime=Lifetime(goals={"create": _SERVES, "pull": _SERVES}, find_failure=_find_failure),
)
