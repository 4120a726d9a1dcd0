"""An update of a single VM: the template that its file asks for, and what becomes of a VM that another one replaces. Asks a person
before the root disk is left behind."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click
import msgspec

from weft.cli.command.target import usage
from weft.cli.deployment.preview import list_serving
from weft.cli.output.terminal import is_terminal
from weft.cli.placement.question import ask
from weft.cli.session import Session
from weft.kinds.backup_policy import BACKUP_POLICY
from weft.kinds.deployment import FIXED
from weft.kinds.fields.cells import dig
from weft.kinds.fields.deployment.instance import REVISION_LABEL
from weft.kinds.parts.deployment.alone import describe_alone
from weft.kinds.parts.nic import networks_of, read_nic
from weft.kinds.parts.workload import parse_publish
from weft.kinds.service import SERVICE, is_matched
from weft.kinds.vm import VM, VmSpec
from weft.objects.errors import IllegalTransition, InvalidInput, NotFound, Unplaceable, WeftError
from weft.objects.schema import read_strict

Object = Mapping[str, Any]
REPLACE = "Let another VM take its place without asking; the root disk stays with the old VM, which is kept."
# Of a VM, whatever version it runs: another way changes them.
_OWN = (*(name for name in FIXED if hasattr(VmSpec, name)), "snapshots", "boot")
_OTHER_WAYS = {
    "publish": "weft vm set {} --publish … changes it",
    "force_publish": "weft vm set {} --force-publish changes it",
    "volumes": "weft attach and weft detach change them",
    "snapshots": "weft vm set {} changes them",
    "run": "weft vm start and weft vm stop change it",
    "lease": "weft lease changes it",
}
_LEFT = {  # what no other VM can take over
    "lease": "its lease",
    "gang": "its gang",
    "type": "its type serverless",
}


def make_template(file: Mapping[str, Any], vm: Object) -> dict[str, Any]:
    """The template of another version of ``vm``, whose whole spec is in ``file``: what the file leaves out of the VM's own stays as
    it is. Raises InvalidInput for a value of the file that would be dropped."""
    asked = msgspec.to_builtins(read_strict(dict(file), VmSpec))
    has = msgspec.to_builtins(msgspec.convert(vm["spec"], VmSpec))
    for name in _OWN:
        if name in file and _compare(name, asked[name]) != _compare(name, has[name]):
            raise _refuse(name, has[name], vm["name"])
    _check_addresses(asked["networks"], has["networks"], vm["name"])
    template = {name: value for name, value in asked.items() if name not in _OWN}
    return {**template, "networks": networks_of(asked["networks"]), "boot": has["boot"]}


def _compare(name: str, value: Any) -> Any:
    return sorted(map(parse_publish, value)) if name == "publish" else value


def _refuse(name: str, has: Any, vm: str) -> InvalidInput:
    shown = ", ".join(map(str, has)) if isinstance(has, list) else has
    other = _OTHER_WAYS.get(name, "").format(vm)
    return InvalidInput(
        f"spec.{name}: an update doesn't change it: vm/{vm} has {shown if shown not in (None, '') else 'none'}",
        field=f"spec.{name}",
        hint=f"leave it out of the file{'; ' if other else ''}{other}",
    )


def _check_addresses(asked: Sequence[str], has: Sequence[str], vm: str) -> None:
    """Raises InvalidInput for an address that the VM doesn't have."""
    own = {nic.network: nic.address for nic in map(read_nic, has)}
    for index, nic in enumerate(map(read_nic, asked)):
        if nic.address not in (None, own.get(nic.network)):
            raise InvalidInput(
                f"spec.networks[{index}]: an update gives no address: vm/{vm} has {own.get(nic.network) or 'none of its choice'}"
                f" in network {nic.network}",
                field=f"spec.networks[{index}]",
                hint=f"write {nic.network} without an address; weft vm set {vm} --network {nic.network}:{nic.address} changes it",
            )


def find_current(session: Session, deployment: dict[str, Any]) -> dict[str, Any]:
    """The deployment's VM that serves now. Raises IllegalTransition if there is none."""
    serving = dig(deployment, "status.stable", 0) or dig(deployment, "status.revision", 0)
    there = list_serving(session, deployment)
    there.sort(key=lambda one: (one.get("labels") or {}).get(REVISION_LABEL) != str(serving))
    if not there:
        raise IllegalTransition(
            f"deployment/{deployment['name']} has no VM now",
            hint=f"weft rollout explain {deployment['name']}",
        )
    return there[0]


def describe_replaced(
    session: Session,
    deployment: dict[str, Any],
    current: dict[str, Any],
    template: dict[str, Any],
    strategy: dict[str, Any],
    rows: list[dict[str, str]],
) -> list[str]:
    """Describe what becomes of the VM if another one takes its place; empty if none does. Raises as ``check_replacement``."""
    adopt = dig(deployment, "spec.adopt")
    if not adopt or not rows[0]["new"]:
        return []
    check_replacement(current, template, strategy)
    beside = strategy.get("type", "rolling") != "rolling"
    new = rows[0]["new"]
    kept = is_there(session, new)
    lines = describe_replacement(current, new, template["image"], adopt, beside=beside, is_kept=kept)
    if beside and not _is_served(session.client.list(SERVICE.name).items, current):
        lines.append(f"  no service leads to vm/{current['name']}: vm/{new} gets no requests until it is promoted")
    return [*lines, *_name_policies(session.client.list(BACKUP_POLICY.name).items, current["name"])]


def list_taken_along(vm: Object) -> list[str]:
    """List what goes to the VM that takes its place."""
    spec = msgspec.convert(vm["spec"], VmSpec)
    ports = [f"port {text}" for text in spec.publish]
    volumes = [f"volume {name}" for name in spec.volumes]
    addresses = [f"address {nic.address}" for nic in map(read_nic, spec.networks) if nic.address is not None]
    return [*ports, *volumes, *addresses, *(["schedule of snapshots"] if spec.snapshots is not None else [])]


def describe_replacement(
    vm: Object, new: str, image: str, adopt: str, *, beside: bool, is_kept: bool = False
) -> list[str]:
    """Describe what becomes of a VM whose place ``new`` takes, in sentences. ``is_kept``: that one is there, stopped."""
    old, along = f"vm/{vm['name']}", list_taken_along(vm)
    spec = msgspec.convert(vm["spec"], VmSpec)
    alone = describe_alone(spec.volumes, spec.networks)
    name = f"the name {adopt} in its networks" + (f", in place of {new}" if new != adopt else "")
    goes = [*along, name] if spec.networks else along
    lines = [f"vm/{new} takes the place of {old}; {old} is stopped and kept, and an undo starts it again"]
    lines += [f"  goes along: {', '.join(goes)}"] if goes else []
    start = "starts again with its own" if is_kept else f"starts from image {image}"
    lines.append(f"  stays with {old}: its root disk; vm/{new} {start}")
    if alone:
        lines.append(f"  {old} stops before vm/{new} starts: {alone}")
    elif beside:
        lines.append(f"  {old} serves until vm/{new} is promoted")
    return lines


def check_replacement(vm: Object, template: Mapping[str, Any], strategy: Mapping[str, Any]) -> None:
    """Raises IllegalTransition or InvalidInput for a VM that no other one can replace so."""
    what, spec = f"vm/{vm['name']}", msgspec.convert(vm["spec"], VmSpec)
    defaults = VmSpec(image="")
    for name, words in _LEFT.items():
        if getattr(spec, name) != getattr(defaults, name):
            raise IllegalTransition(
                f"{what}: these changes need another VM, which can't take over {words}",
                hint="make only changes that this VM can take, or create another VM: weft vm create",
            )
    if spec.publish and not template["networks"]:
        raise InvalidInput(
            f"spec.networks: {what} publishes {', '.join(spec.publish)}, which needs a network",
            field="spec.networks",
            hint="name a network in the file",
        )
    alone = describe_alone(spec.volumes, spec.networks)
    if alone and strategy.get("type", "rolling") != "rolling":
        raise IllegalTransition(
            f"{what}: no other version can run beside it: {alone}",
            hint=f"weft vm update {vm['name']} --config FILE --strategy rolling stops it before the new version starts",
        )
    if alone and strategy.get("max_unavailable") == 0:
        raise IllegalTransition(
            f"{what} has to stop before another version starts: {alone}",
            hint="leave out --max-unavailable 0",
        )


def settle_replacement(
    session: Session,
    vm: Object,
    template: Mapping[str, Any],
    strategy: Mapping[str, Any],
    new: str,
    lines: Sequence[str],
    *,
    replaces: bool,
) -> bool:
    """Whether another VM may take the place of ``vm``: a node takes it, and people agree. Raises Unplaceable, and as
    ``ask_to_replace``."""
    if strategy.get("type", "rolling") == "rolling" and not is_there(session, new):
        _check_capacity(session, vm, template)
    return ask_to_replace(session, lines, new, replaces=replaces)


def is_there(session: Session, vm: str) -> bool:
    try:
        session.client.get(VM.name, vm)
    except NotFound:
        return False
    return True


def _check_capacity(session: Session, vm: Object, template: Mapping[str, Any]) -> None:
    """Raises Unplaceable if no node takes another VM while this one keeps its place: it would stop for nothing."""
    what = f"vm/{vm['name']}"
    changes = {**template, "volumes": dig(vm, "spec.volumes", [])}
    try:
        answer = ask(session, "recommendation", {"kind": "vm", "changes": changes, "instead_of": what})
    except WeftError as problem:
        session.notify(f"capacity can't be checked now: {problem.message}")
        return
    if dig(answer, "status.phase") == "Done" and not dig(answer, "status.best"):
        raise Unplaceable(
            f"no node can take another VM beside {what}, which keeps its place while it is stopped: "
            f"{dig(answer, 'status.message') or dig(answer, 'status.reason')}",
            reason=dig(answer, "status.reason") or "insufficientResources",
            hint="weft capacity shows what is free; add a node, or give the new version less",
        )


def ask_to_replace(session: Session, lines: Iterable[str], new: str, *, replaces: bool) -> bool:
    """Show ``lines`` and ask; the answer. ``replaces``: a person has said so already. Raises UsageError where nobody can answer."""
    if session.recorder is not None:
        return True  # the requests are shown instead, and nothing is sent
    for line in lines:
        session.notify(line)
    if not replaces and not (is_terminal(sys.stdin) and is_terminal(sys.stderr)):
        raise usage(
            f"vm/{new} would start without the old root disk: without a terminal that needs --replace-root-disk",
            "nothing was changed",
        )
    return replaces or click.confirm(f"Let vm/{new} start without that root disk?", err=True)


def _is_served(services: Iterable[Object], vm: Object) -> bool:
    return any(is_matched(dig(one, "spec.selector", {}), vm.get("labels") or {}) for one in services)


def _name_policies(policies: Iterable[Object], vm: str) -> list[str]:
    """Backup policies that go on with the VM that is replaced, as sentences."""
    found = [f"backuppolicy/{one['name']}" for one in policies if f"vm/{vm}" in dig(one, "spec.of", [])]
    return [f"  {', '.join(found)} backs up vm/{vm}, and not the VM that takes its place"] if found else []
