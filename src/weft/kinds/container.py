"""Container: processes from an OCI image, isolated from everything else on their node. Its status is folded from its allocations,
as a VM's is. It is placed on nodes that report that they run containers, and waits for one."""

from __future__ import annotations

import re
from operator import attrgetter
from typing import Annotated, Any, Literal

import msgspec

from weft.kinds.allocation import AllocatedContainer, AllocationSpec, HealthCheck, Word
from weft.kinds.fields.cells import dig, text
from weft.kinds.fields.environment import check_env, check_env_secrets
from weft.kinds.fields.mount import read_mount
from weft.kinds.parts.capabilities import MORE_CAPABILITIES, read_capabilities
from weft.kinds.parts.convert_verb import CONVERT, guard_converting
from weft.kinds.parts.goal import WORKLOAD_GOALS, find_workload_failure
from weft.kinds.parts.image.use import check_image_use
from weft.kinds.parts.lease_verbs import LEASE_VERBS
from weft.kinds.parts.migration.verb import MigrateContainerInput, make_migration
from weft.kinds.parts.placement_spec import MIB
from weft.kinds.parts.snapshot.volume_verbs import CONTAINER_SNAPSHOT
from weft.kinds.parts.stream_verbs import CAPTURE, EXEC, FLOWS, FORWARD, LOGS, METRICS
from weft.kinds.parts.workload import (
    CONDITIONS,
    HOLD,
    KEPT,
    RELEASE,
    RESTART,
    START,
    STARTED_BY,
    WorkloadActions,
    WorkloadSpec,
    WorkloadStatus,
    born,
    check_times,
    check_workload,
    claim_places,
    count_workload,
    find_publish_rights,
    index_workload,
    refuse_twice,
    set_fields,
    was_refused,
    workload_columns,
    workload_references,
)
from weft.kinds.record import (
    Access,
    Admission,
    Column,
    Display,
    Kind,
    Lifetime,
    Needs,
    Object,
    Reference,
    Verb,
    Workload,
)
from weft.kinds.volume import refuse_orphan
from weft.objects.envelope import take_from_spec
from weft.objects.errors import InvalidInput
from weft.objects.identity import check_name, check_shared_name
from weft.objects.image.reference import held_name, parse_reference
from weft.objects.quantity import format_bytes
from weft.objects.schema import field

LEAST_MEMORY_BYTES = 4 * MIB
LEAST_MACHINE_BYTES = 96 * MIB  # with a kernel of its own
DEFAULT_DISK_BYTES = 1 << 30
LEAST_DISK_BYTES, MOST_DISK_BYTES = 16 * MIB, 1 << 43
MOST_MOUNTS = 16
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,63})?")


class ContainerSpec(WorkloadSpec, msgspec.Struct, kw_only=True):
    on_node_loss: Annotated[
        Literal["wait", "restart"],
        field(
            "restart: once it has surely ended on a lost node, start it on another; wait: it waits for its node",
            change="live",
        ),
    ] = "wait"
    image: Annotated[
        str,
        field(
            "Image: REGISTRY/NAME:TAG, REGISTRY/NAME@sha256:… to pin one, or the NAME of an image that weft holds (PROJECT/NAME if "
            "another project shares it)",
            change="replace",
            max_length=512,
        ),
    ]
    command: Annotated[list[Word], field("Command, instead of the image's entrypoint", change="restart")] = []
    args: Annotated[list[Word], field("Arguments, instead of the image's", change="restart")] = []
    env: Annotated[
        dict[str, str],
        field(
            "Environment variables, added to the image's; visible to everyone who may read the object", change="restart"
        ),
    ] = {}
    env_secrets: Annotated[
        dict[str, str], field("Environment variables from secrets of the project: NAME=SECRET/KEY", change="restart")
    ] = {}
    registry_secret: Annotated[str, field("Secret with the credentials for the image's registry", change="restart")] = (
        ""
    )
    mounts: Annotated[
        list[str], field("Volumes to mount: NAME:/PATH, or NAME:/PATH:ro for read-only", change="restart")
    ] = []
    user: Annotated[
        str, field("User to run as: USER[:GROUP], names or numbers; the image's if unset", change="restart")
    ] = ""
    read_only: Annotated[
        bool, field("Make the root file system read-only; /tmp and /run stay writable", change="restart")
    ] = False
    add_capabilities: Annotated[list[str], field("Capabilities to add, like NET_RAW", change="restart")] = []
    drop_capabilities: Annotated[list[str], field("Capabilities to drop; ALL drops every one", change="restart")] = []
    disk: Annotated[
        int,
        field(
            "Limit on what is written to the root file system; counts as disk of the node",
            change="replace",
            quantity="bytes",
        ),
    ] = DEFAULT_DISK_BYTES
    pids: Annotated[int, field("Limit on processes and threads", change="restart", ge=1, le=4194304)] = 1024
    isolation: Annotated[
        Literal["container", "vm"],
        field(
            "container: namespaces of the node's kernel; vm: a machine of its own, with its own kernel",
            change="replace",
        ),
    ] = "container"
    health_check: Annotated[HealthCheck | None, field("Health check", change="restart")] = None
    once: Annotated[
        bool, field("Run once: never start again, and free the capacity when the run has ended", change="never")
    ] = False
    preemptible: Annotated[
        bool,
        field("May be evicted, and started afresh elsewhere, when other workloads find no capacity", change="never"),
    ] = False


class ContainerActions(WorkloadActions, msgspec.Struct, kw_only=True, frozen=True):
    pulls: Annotated[int, field("Counter: the image's tag is resolved again when it grows", ge=0)] = 0


def check_image_reference(image: str) -> None:
    """Files of a node are its own: no object names them."""
    example = (
        "write REGISTRY/NAME:TAG, like registry.example.org/shop/web:1.4, or REGISTRY/NAME@sha256:…, or PROJECT/NAME of an "
        "image that another project shares"
    )
    try:
        place = parse_reference(image).place
    except InvalidInput as problem:
        hint = example if "REGISTRY/" in (problem.hint or "") else f"{problem.hint}; {example}"
        raise InvalidInput(problem.message, field="spec.image", hint=hint) from None
    if place != "registry":
        raise InvalidInput(
            f"spec.image: {image[:80]!r} is not an image in a registry",
            field="spec.image",
            hint=f"skopeo copy {image[:80]} docker://REGISTRY/NAME:TAG puts it into one; {example}",
        )


def check_container(spec: ContainerSpec) -> None:
    """Check what types can't say; what has several spellings gets its one. Raises InvalidInput."""
    check_workload(spec, least_memory=LEAST_MEMORY_BYTES)
    if spec.isolation == "vm" and spec.memory < LEAST_MACHINE_BYTES:
        raise InvalidInput(
            f"spec.memory: {spec.memory >> 20} MiB is too little for a container with a machine of its own",
            field="spec.memory",
            hint=f"give at least {LEAST_MACHINE_BYTES // MIB}M: the machine's kernel needs memory, too",
        )
    if not LEAST_DISK_BYTES <= spec.disk <= MOST_DISK_BYTES:
        raise InvalidInput(
            f"spec.disk: a container's root disk can't have {format_bytes(spec.disk)}",
            field="spec.disk",
            hint="from 16M to 8T",
        )
    if held_name(spec.image):
        check_shared_name(spec.image, "spec.image")
    else:
        check_image_reference(spec.image)
    if spec.registry_secret:  # empty is none, as it is written out at admission
        check_name(spec.registry_secret, "spec.registry_secret")
        refuse_secret(spec.image)
    mounts = [read_mount(mount, f"spec.mounts[{index}]") for index, mount in enumerate(spec.mounts)]
    refuse_twice(mounts=[mount.volume for mount in mounts])
    refuse_twice(mounts=[mount.path for mount in mounts])
    if len(mounts) > MOST_MOUNTS:
        raise InvalidInput(f"spec.mounts: a container can have at most {MOST_MOUNTS} mounts", field="spec.mounts")
    check_env(spec.env)
    check_env_secrets(spec.env_secrets, spec.env)
    if spec.user and not _USER.fullmatch(spec.user):
        raise InvalidInput(
            f"spec.user: {spec.user[:60]!r} is neither a user nor USER:GROUP",
            field="spec.user",
            hint="give a user of the image, like www-data, or numbers: 1000:1000",
        )
    for words, name in ((spec.command, "command"), (spec.args, "args")):
        if any("\0" in word for word in words):
            raise InvalidInput(
                f"spec.{name}: an argument can't contain a NUL character", field=f"spec.{name}", hint="remove it"
            )
    if spec.command and not spec.command[0]:
        raise InvalidInput("spec.command: the first word is empty", field="spec.command", hint="give a program")
    spec.add_capabilities = read_capabilities(spec.add_capabilities, "add_capabilities", MORE_CAPABILITIES)
    spec.drop_capabilities = read_capabilities(spec.drop_capabilities, "drop_capabilities", ("ALL",))
    if both := sorted({*spec.add_capabilities} & {*spec.drop_capabilities}):
        raise InvalidInput(
            f"spec.add_capabilities: {both[0]} is in spec.drop_capabilities, too",
            field="spec.add_capabilities",
            hint="keep it in one of them",
        )
    if spec.once and spec.restart == "always":
        raise InvalidInput(
            "spec.restart: a container that runs once (spec.once) is never restarted",
            field="spec.restart",
            hint="leave out spec.restart or spec.once",
        )
    check = spec.health_check
    if check is not None and (not check.command or not check.command[0]):
        raise InvalidInput(
            "spec.health_check.command is missing",
            field="spec.health_check.command",
            hint="give a program of the image",
        )
    for name, usual in (("interval", "30s"), ("timeout", "5s")) if check is not None else ():
        if not getattr(check, name) > 0:
            field = f"spec.health_check.{name}"
            raise InvalidInput(f"{field} must be more than 0", field=field, hint=f"a usual one is {usual}")
    if spec.run == "suspend":
        raise InvalidInput("spec.run: a container can't be suspended", field="spec.run", hint="run or stop")


def refuse_secret(image: str) -> None:
    """A registry's secret goes with an image of a registry's only. Raises InvalidInput."""
    if held_name(image):
        raise InvalidInput(
            f"spec.registry_secret: {image} is held by weft itself, so no registry credentials apply",
            field="spec.registry_secret",
            hint="leave it out, or name an image in a registry: REGISTRY/NAME:TAG",
        )


def _secrets(spec: ContainerSpec) -> list[str]:
    named = [place.partition("/")[0] for place in spec.env_secrets.values()]
    return list(dict.fromkeys([*named, *([spec.registry_secret] if spec.registry_secret else [])]))


class RestartInput(msgspec.Struct):
    """``pull``: use the image that the tag refers to now."""

    pull: bool = False


def _restart(obj: Object, given: RestartInput) -> dict[str, Any]:
    assert RESTART.act is not None
    asked = RESTART.act(obj, given)
    return asked | {"pulls": dig(obj, "actions.pulls", 0) + 1} if given.pull else asked


VERBS = (
    START,
    Verb(
        "stop",
        "Stop the container; it keeps its node and what it wrote",
        change=set_fields("stop", run="stop"),
        needs="operate",
    ),
    Verb(
        "restart",
        "Stop the container and start it afresh",
        input=RestartInput,
        change=RESTART.change,
        act=_restart,
        needs="operate",
    ),
    CONTAINER_SNAPSHOT,
    CONVERT,
    HOLD,
    RELEASE,
    *LEASE_VERBS,
    Verb("migrate", "Migrate to another node", input=MigrateContainerInput, make=make_migration, needs="operate"),
    EXEC.verb("Run a command in the container"),
    FORWARD.verb("Forward a TCP port of the container"),
    LOGS.verb("Show the container's log"),
    FLOWS.verb("Show network flows of the container"),
    CAPTURE.verb("Capture packets of the container"),
    METRICS.verb("Show what the container used, over time"),
)


def _volumes(spec: ContainerSpec) -> list[str]:
    return [read_mount(mount).volume for mount in spec.mounts]


def _images(spec: ContainerSpec) -> list[str]:
    return [name] if (name := held_name(spec.image)) else []


def _needs(spec: ContainerSpec) -> Needs:
    name = held_name(spec.image)
    return Needs(
        images=(name,) if name else (),
        disk=spec.disk,
        runtime="container" if spec.isolation == "container" else f"container/{spec.isolation}",
    )


_FIELDS = tuple(name for name in AllocatedContainer.__struct_fields__ if name != "pulls")  # which is no field of a spec
_read = attrgetter(*_FIELDS)  # of a spec, or of an allocation's part


def _make(spec: ContainerSpec) -> AllocatedContainer:
    return AllocatedContainer(**dict(zip(_FIELDS, _read(spec), strict=True)))


def _compare(place: AllocationSpec, spec: ContainerSpec) -> tuple[dict[str, Any], dict[str, Any]]:
    has, asked = place.container, _make(spec)
    if has is None:
        return {}, msgspec.to_builtins(asked)
    there = {volume.name for volume in place.volumes}  # one that rests has let go of those that it didn't name
    mounts = [mount for mount in has.mounts if read_mount(mount).volume in there]
    has = msgspec.structs.replace(has, mounts=mounts, pulls=asked.pulls)
    return msgspec.to_builtins(has), msgspec.to_builtins(asked)


def _is_same(place: AllocationSpec, spec: ContainerSpec) -> bool:
    has = place.container
    same = has is not None and _read(has) == _read(spec)
    return same and [volume.name for volume in place.volumes] == _volumes(spec)


def _is_alike(place: AllocationSpec, spec: ContainerSpec) -> bool:
    has = place.container
    return has is not None and (has.image, has.isolation, has.mounts) == (spec.image, spec.isolation, spec.mounts)


def _resize(place: AllocationSpec, spec: ContainerSpec, fields: set[str]) -> None:
    if {name.partition(".")[0] for name in fields} & set(_FIELDS):
        pulls = place.container.pulls if place.container is not None else 0
        place.container = msgspec.structs.replace(_make(spec), pulls=pulls)


def _bar_checkpoint(place: AllocationSpec) -> str:
    own_machine = place.container is not None and place.container.isolation == "vm"
    return "it runs in a machine of its own (isolation vm)" if own_machine else ""


WORKLOAD = Workload(
    needs=_needs,
    volumes=_volumes,
    volumes_field="mounts",
    allocate=lambda spec, _: {
        "runtime": "oci",
        "container": _make(spec),
        "once": spec.once,
        "preemptible": spec.preemptible,
    },
    compare=_compare,
    is_same=_is_same,
    is_alike=_is_alike,
    resize=_resize,
    runs_once=lambda spec: bool(spec.once),
    preemptible=lambda spec: bool(spec.preemptible),
    checks_health=lambda spec: spec.health_check is not None,
    checkpoint_bar=_bar_checkpoint,
)

CONTAINER = Kind(
    name="container",
    plural="containers",
    title="container",
    summary="Processes from an OCI image",
    spec=ContainerSpec,
    actions=ContainerActions,
    status=WorkloadStatus,
    schema=2,
    upgrades=(take_from_spec(actions=ContainerActions),),
    indexes=index_workload(ContainerSpec, WORKLOAD),
    references=(
        Reference(
            "image",
            "spec.image",
            _images,
            else_="write an image in a registry with its registry: REGISTRY/{}:TAG",
            suffices=check_image_use("container", "spec.image"),
            asks=lambda s: s.image,
        ),
        Reference("volume", "spec.mounts", _volumes, holder=lambda status: status.attached_to, bars=refuse_orphan),
        Reference("secret", "spec.registry_secret and spec.env_secrets", _secrets),
        *workload_references(),
    ),
    verbs=VERBS,
    snapshots="mounts",
    workload=WORKLOAD,
    in_backups="renamed",
    access=Access(
        readers="project",
        further_rights=find_publish_rights,
        status_writer="workload",
        condition_writers=CONDITIONS | {"Healthy": "workload"},
        mark_writers={"restart_generation": STARTED_BY},
    ),
    admission=Admission(
        check=check_container,
        check_times=check_times,
        write_guard=guard_converting,
        resize_limits=lambda status: status.resize_limits,
        kept_fields=KEPT,
        claims=claim_places,
        counts=count_workload(WORKLOAD),
        was_refused=was_refused,
    ),
    display=Display(
        topic="Workloads",
        commands=("cp",),
        columns=workload_columns(Column("IMAGE", text("spec.image"), flexible=True)),
        over=lambda obj: bool(dig(obj, "spec.once")) and dig(obj, "status.phase") in ("Stopped", "Failed"),
        shows_output=True,
    ),
    lifetime=Lifetime(
        initial_conditions=born,
        goals=WORKLOAD_GOALS,
        find_failure=find_workload_failure,
        finalizers=("workload",),
    ),
)
