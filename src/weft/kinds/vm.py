"""VM: a virtual machine, as people wish for it. Its status is folded from its allocations by the workload controller."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec

from weft.kinds.allocation import LOCAL
from weft.kinds.cells import AGE, NAME, cores, dig, joined, size, text
from weft.kinds.migration import MigrateInput, make_migration
from weft.kinds.nic import claim_address, networks_of, read_nic
from weft.kinds.publication import PublicationSpec
from weft.kinds.record import Claim, ClaimWithin, Column, Kind, Object, Reference, Verb
from weft.kinds.workload_wish import WorkloadWish, check_wish, wish_references
from weft.objects.envelope import Condition, Envelope
from weft.objects.errors import IllegalTransition, InvalidInput
from weft.objects.lifecycle import Phase, check_verb
from weft.objects.quantity import format_bytes
from weft.objects.schema import field

MIB = 1024 * 1024
MOST_MEMORY_BYTES = 64 * 2**40
MOST_DISK_BYTES = 2**50
MOST_GPUS = 8
_PUBLISH = re.compile(r"(\d{1,5}):(\d{1,5})(?:/(tcp|udp))?")

_SSH_KEY = re.compile(r"(?:[^\s\"]|\"[^\"]*\")* ?(ssh-|ecdsa-|sk-)[a-z0-9@.-]+ [A-Za-z0-9+/]{16,}={0,3}( .*)?")
_CPU_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")

WITHOUT_NETWORKS = Condition("Addressed", "True", "Addressed", "no networks")  # whoever has none waits for no address

Name = Annotated[str, field("", name=True)]
SshKey = Annotated[str, field("", max_length=16384)]
UserName = Annotated[str, field("", max_length=32)]


class VmSpec(WorkloadWish, msgspec.Struct, kw_only=True):
    image: Annotated[str, field("The image the root disk is cloned from", change="replace", name=True)]
    cpu: Annotated[float, field("Cores; a fraction is a limit", change="plug", quantity="cpu")] = 1.0
    memory: Annotated[int, field("Memory", change="plug", quantity="bytes")] = 256 * MIB
    disk: Annotated[
        int, field("Root disk, which may grow; 0 is the image's own size", change="plug", quantity="bytes")
    ] = 0
    pool: Annotated[
        str, field("The storage pool that its root disk is made in; local is its node's own", change="never", name=True)
    ] = LOCAL
    machine: Annotated[Literal["q35", "microvm"], field("Machine type", change="restart")] = "q35"
    cpu_model: Annotated[
        str,
        field(
            "Its CPU: common is the best that all nodes like its own have, so that it can move to each; host is all of "
            "its node's; or a model by QEMU's name for it",
            change="restart",
            max_length=64,
        ),
    ] = "common"
    networks: Annotated[
        list[str], field("Networks to join, one NIC each: NAME, or NAME:ADDRESS for that address", change="plug")
    ] = msgspec.field(default_factory=lambda: ["default"])
    security_groups: Annotated[
        list[Name], field("Security groups to carry; none: whoever is in its networks may connect", change="live")
    ] = []
    publish: Annotated[list[str], field("Ports to publish: HOST:GUEST or HOST:GUEST/udp", change="live")] = []
    volumes: Annotated[list[Name], field("Volumes to attach, in this order", change="plug")] = []
    user_data: Annotated[
        str, field("Script (#!…) or cloud-config for the guest's first boot", change="replace", max_length=65536)
    ] = ""
    ssh_keys: Annotated[
        list[SshKey], field("SSH keys that may log in, as root and as each user; needs cloud-init", change="replace")
    ] = []
    users: Annotated[list[UserName], field("Users to make, with sudo; needs cloud-init", change="replace")] = []
    firmware: Annotated[
        Literal["auto", "bios", "uefi"],
        field("What boots: auto is the image's own kernel, where it has one, else bios", change="restart"),
    ] = "auto"
    iso: Annotated[
        str | None, field("An image to put into a CD drive, which firmware boots first", change="restart", name=True)
    ] = None
    screen: Annotated[
        Literal["auto", "yes", "no"],
        field("A screen to see over VNC: auto is yes where firmware boots", change="restart"),
    ] = "auto"
    restart: Annotated[
        Literal["always", "on-failure", "never"], field("Start again when the guest ends by itself", change="live")
    ] = "on-failure"
    on_node_loss: Annotated[Literal["wait", "restart"], field("What to do when the node is lost", change="live")] = (
        "wait"
    )
    grace: Annotated[float, field("How long a guest may take to shut down", change="live", quantity="duration")] = 20.0
    run: Annotated[Literal["run", "stop", "suspend"], field("The wish: verbs start, stop, suspend set it")] = "run"
    hold: Annotated[bool, field("Do not place yet: verbs hold and release set it")] = False
    boots: Annotated[int, field("Grows by one with each fresh start asked for", ge=0)] = 0


class VmStatus(msgspec.Struct, kw_only=True):
    """``address`` is the first NIC's; ``ready`` None means the image has no agent that could tell. ``room`` is what the running
    machine can come to, by field of the spec (see ``objects/changes.py``); None: none runs. ``migration`` is the name of the
    one that moves it, from when it is asked for to its end; ``pool`` is where its root disk lies. ``incarnation`` is the highest
    that any place of it has had, ``active_incarnation`` the highest of those that were its own: a lower one never runs again."""

    phase: str = "Pending"
    node: str | None = None
    address: str | None = None
    addresses: dict[str, str] = {}
    ready: bool | None = None
    boot_id: str | None = None
    incarnation: int = 0
    active_incarnation: int = 0
    restarts: int = 0
    observed_generation: int = 0
    reason: str = ""
    message: str = ""
    steps: list[dict[str, Any]] = []
    accelerator: str | None = None
    room: dict[str, int] | None = None
    started_at: float | None = None
    migration: str = ""
    pool: str = ""


def parse_publish(text_: str, field_: str = "spec.publish") -> tuple[int, int, Literal["tcp", "udp"]]:
    """``8080:80/tcp`` as (host port, guest port, protocol). Raises InvalidInput."""
    match = _PUBLISH.fullmatch(text_)
    hint = "write HOST:GUEST, like 8080:80 or 5353:53/udp"
    if match is None:
        raise InvalidInput(f"{field_}: {text_[:60]!r} is not a port mapping", field=field_, hint=hint)
    host, guest = int(match[1]), int(match[2])
    for port in (host, guest):
        if not 1 <= port <= 65535:
            raise InvalidInput(f"{field_}: port {port} is not between 1 and 65535", field=field_, hint=hint)
    return host, guest, "udp" if match[3] == "udp" else "tcp"


def check_vm(spec: VmSpec) -> None:
    """What types can't say; what has several spellings gets its one. Raises InvalidInput."""
    if spec.memory < 64 * MIB:
        raise InvalidInput(
            f"spec.memory: {spec.memory} bytes is too little for a guest", field="spec.memory", hint="give at least 64M"
        )
    if spec.memory > MOST_MEMORY_BYTES:
        raise InvalidInput("spec.memory: a guest can't have that much", field="spec.memory", hint="at most 64T")
    if spec.disk > MOST_DISK_BYTES:
        raise InvalidInput("spec.disk: a disk can't be that large", field="spec.disk", hint="at most 1P")
    if spec.cpu > 255:
        raise InvalidInput(
            f"spec.cpu: {spec.cpu:g} is more than a guest can have", field="spec.cpu", hint="at most 255"
        )
    if not _CPU_MODEL.fullmatch(spec.cpu_model):
        raise InvalidInput(
            f"spec.cpu_model: {spec.cpu_model!r} is not the name of a CPU model",
            field="spec.cpu_model",
            hint="common, host, or one of a node's report.cpu_models: weft get node NAME -o yaml",
        )
    check_wish(spec)
    for index, nic in enumerate(spec.networks):
        read_nic(nic, f"spec.networks[{index}]")
    ports = [parse_publish(p, f"spec.publish[{i}]")[::2] for i, p in enumerate(spec.publish)]
    for name, values in (
        ("publish", ports),
        ("networks", networks_of(spec.networks)),
        ("security_groups", spec.security_groups),
        ("volumes", spec.volumes),
    ):
        if len(set(values)) != len(values):
            raise InvalidInput(f"spec.{name} names the same thing twice", field=f"spec.{name}")
    if spec.publish and not spec.networks:
        raise InvalidInput("spec.publish needs a network", field="spec.publish", hint="add networks: [default]")
    for index, key in enumerate(spec.ssh_keys):
        if not _SSH_KEY.fullmatch(key):
            raise InvalidInput(
                f"spec.ssh_keys[{index}]: {key[:40]!r} is not a public SSH key",
                field=f"spec.ssh_keys[{index}]",
                hint="give the line of a .pub file: ssh-ed25519 AAAA… name",
            )
    for index, user in enumerate(spec.users):
        if not _USER.fullmatch(user):
            raise InvalidInput(
                f"spec.users[{index}]: {user[:40]!r} is not a user name",
                field=f"spec.users[{index}]",
                hint="begin with a letter; a-z, 0-9, - and _, at most 32",
            )
    if spec.machine == "microvm" and (spec.firmware != "auto" or spec.screen == "yes"):
        raise InvalidInput(
            "spec.machine: a microvm has neither firmware nor a screen", field="spec.machine", hint="use machine q35"
        )
    if spec.machine == "microvm" and spec.gpus:
        raise InvalidInput(
            "spec.machine: a microvm has no PCI bus for a GPU", field="spec.machine", hint="use machine q35"
        )
    if spec.gpus > MOST_GPUS:
        raise InvalidInput(f"spec.gpus: a VM gets {MOST_GPUS} at most", field="spec.gpus")
    if len(spec.networks) > 8:
        raise InvalidInput("spec.networks: at most 8", field="spec.networks")
    if len(spec.security_groups) > 16:
        raise InvalidInput("spec.security_groups: at most 16", field="spec.security_groups")
    if len(spec.volumes) > 16:
        raise InvalidInput("spec.volumes: at most 16", field="spec.volumes")


def _suspend(obj: Object, _: Any) -> dict[str, Any]:
    """A GPU's state stays in it."""
    check_verb("suspend", _phase(obj), _what(obj))
    if obj["spec"].get("gpus"):
        raise IllegalTransition(f"{_what(obj)} has GPUs, so it can't be suspended", hint=f"weft stop {_what(obj)}")
    return {**obj["spec"], "run": "suspend"}


def check_growth(old: VmSpec, new: VmSpec) -> None:
    """A root disk never shrinks: the file system on it would lose its end. Raises InvalidInput."""
    if new.disk < old.disk:
        raise InvalidInput(
            f"spec.disk: a disk can't shrink from {format_bytes(old.disk)} to {format_bytes(new.disk)}",
            field="spec.disk",
            hint="make a new VM with a smaller one",
        )


def claim_places(envelope: Envelope, spec: VmSpec) -> Sequence[Claim | ClaimWithin]:
    """What no other VM may have: each published port (a publication, its name is the port) and each chosen address (an
    endpoint, its name is network and address)."""
    claims: list[Claim | ClaimWithin] = []
    for index, nic in enumerate(spec.networks):
        claim = claim_address(envelope, index, nic)
        if claim is not None:
            claims.append(claim)
    for index, mapping in enumerate(spec.publish):
        port, target, protocol = parse_publish(mapping)
        claims.append(
            Claim(
                kind="publication",
                name=f"{protocol}-{port}",
                spec=PublicationSpec(port=port, protocol=protocol, target_port=target, workload=envelope.ref),
                field=f"spec.publish[{index}]",
                reason="portInUse",
                taken=f"port {port}/{protocol} is published already",
                hint="choose another port; weft get publication lists them",
            )
        )
    return claims


def _phase(obj: Object) -> Phase:
    return Phase(dig(obj, "status.phase", "Pending"))


def _what(obj: Object) -> str:
    return f"vm/{obj['name']}"


def _set(verb: str, **fields: Any) -> Any:
    def change(obj: Object, _: Any) -> dict[str, Any]:
        check_verb(verb, _phase(obj), _what(obj))
        return {**obj["spec"], **fields}

    return change


def _start(obj: Object, _: Any) -> dict[str, Any]:
    """Wish it running; a guest that ended by itself, or failed, gets a fresh boot."""
    phase = _phase(obj)
    check_verb("start", phase, _what(obj))
    spec = dict(obj["spec"])
    if spec["run"] == "run" and phase in (Phase.STOPPED, Phase.FAILED):
        spec["boots"] += 1
    spec["run"] = "run"
    return spec


def _restart(obj: Object, _: Any) -> dict[str, Any]:
    check_verb("restart", _phase(obj), _what(obj))
    return {**obj["spec"], "run": "run", "boots": obj["spec"]["boots"] + 1}


class ExecInput(msgspec.Struct):
    """``argv`` goes to the guest unchanged; no shell is put between."""

    argv: list[str]
    env: dict[str, str] = {}
    cwd: str = ""
    tty: bool = False


class ConsoleInput(msgspec.Struct):
    pass


class LogsInput(msgspec.Struct):
    """``tail`` last lines first (-1: all), then on if ``follow``."""

    follow: bool = False
    tail: int = -1


class ForwardInput(msgspec.Struct):
    """A TCP port of the guest's first NIC; ``patience``: for how many seconds to try while nothing listens there."""

    port: Annotated[int, msgspec.Meta(ge=1, le=65535)]
    patience: Annotated[float, msgspec.Meta(ge=0, le=300)] = 0.0


class ScreenInput(msgspec.Struct):
    pass


VERBS = (
    Verb("start", "Start it (after stop, suspend or failure)", change=_start),
    Verb("stop", "Shut the guest down; its disks and place stay", change=_set("stop", run="stop")),
    Verb("restart", "Shut down and boot afresh", change=_restart),
    Verb("suspend", "Save memory to disk and end the machine", change=_suspend),
    Verb("resume", "Go on from where it was suspended", change=_set("resume", run="run")),
    Verb("migrate", "Move it to another node", input=MigrateInput, make=make_migration),
    Verb("hold", "Don't place it yet", change=_set("hold", hold=True)),
    Verb("release", "Let a held one be placed", change=_set("release", hold=False)),
    Verb("exec", "Run a command in the guest", input=ExecInput, stream=True),
    Verb("console", "The guest's serial console", input=ConsoleInput, stream=True),
    Verb("forward", "Reach a TCP port of the guest from here", input=ForwardInput, stream=True),
    Verb("screen", "The guest's screen, as RFB (VNC)", input=ScreenInput, stream=True),
    Verb("logs", "What the guest printed on its console", input=LogsInput, stream=True),
)


def _note(obj: Object) -> str:
    reason, message = dig(obj, "status.reason", ""), dig(obj, "status.message", "")
    return f"{reason}: {message}" if reason and message else reason or message


VM = Kind(
    name="vm",
    plural="vms",
    title="VM",
    summary="A virtual machine",
    aliases=("virtualmachine",),
    spec=VmSpec,
    status=VmStatus,
    verbs=VERBS,
    check=check_vm,
    check_change=check_growth,
    room=lambda status: status.room,
    claims=claim_places,
    finalizers=("workload",),
    status_writer="workload",
    kept=("run", "hold", "boots"),
    conditions={"Placed": "scheduler", "Addressed": "addresses", "Ready": "workload", "Current": "workload"},
    born=lambda spec: [] if spec.networks else [WITHOUT_NETWORKS],
    references=(
        Reference("image", "spec.image", lambda s: [s.image], blocks=True),
        Reference("image", "spec.iso", lambda s: [s.iso] if s.iso else [], blocks=True),
        Reference("network", "spec.networks", lambda s: networks_of(s.networks)),
        Reference("securitygroup", "spec.security_groups", lambda s: s.security_groups),
        Reference("volume", "spec.volumes", lambda s: s.volumes, holder=lambda status: status.attached_to),
        *wish_references(),
        Reference("node", "spec.node", lambda s: [s.node] if s.node else [], blocks=False),
    ),
    columns=(
        NAME,
        Column("PHASE", text("status.phase", "Pending")),
        Column("NODE", text("status.node")),
        Column("ADDRESS", text("status.address")),
        Column("CPU", cores("spec.cpu"), align="right"),
        Column("MEMORY", size("spec.memory"), align="right"),
        Column("IMAGE", text("spec.image")),
        AGE,
        Column("NETWORKS", joined("spec.networks"), wide=True),
        Column("GROUPS", joined("spec.security_groups"), wide=True),
        Column("PUBLISH", joined("spec.publish"), wide=True),
        Column("RESTARTS", text("status.restarts", "0"), align="right", wide=True),
        Column("NOTE", _note, flexible=True),
    ),
)
