"""`weft convert container/web --to vm`: convert a workload to another kind, on the same image, and show the progress. Ctrl-C
ends the watching only."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import click
import msgspec

from weft.cli.command import options
from weft.cli.command.exit_codes import OK, UNPLACEABLE, exit_code
from weft.cli.command.grammar import Entry
from weft.cli.command.lookup import find_one
from weft.cli.command.target import Target, usage
from weft.cli.conversion.progress import Converting, describe_end, describe_next
from weft.cli.output.formats import print_object
from weft.cli.session import Session
from weft.cli.wait.follow import follow_to_end, print_one
from weft.cli.wait.watch import Result, Wait
from weft.kinds.container import ContainerSpec
from weft.kinds.conversion import ENDED, ConversionSpec, check_conversion, read_new
from weft.kinds.fields.cells import dig
from weft.kinds.image import OCI, read_oci
from weft.kinds.operation import name_operation
from weft.kinds.parts.convert_verb import DEFAULT_TIMEOUT_SECONDS, KINDS, ConvertInput, make_conversion
from weft.kinds.parts.spec_conversion import Translated, refuse_elsewhere, to_container, to_vm
from weft.kinds.record import Goal, Kind
from weft.kinds.registry import BY_NAME
from weft.kinds.vm import VmSpec
from weft.objects.errors import AlreadyExists, DriverFailed, IllegalTransition, NotFound, Unplaceable, WeftError
from weft.objects.quantity import format_bytes, parse_bytes

BACK_SECONDS = 60.0  # added to its timeout: until the old workload has everything again
_BEHIND = {
    "container": "data outside its volumes is not copied: the new VM starts from the image",
    "vm": "the root disk is not copied: the new container starts from the image",
}


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params: list[click.Parameter] = [
        options.targets(kind, many=False, able=KINDS),
        click.Option(["--to"], type=click.Choice(KINDS), required=True, help="The kind to convert to."),
        click.Option(["--as", "new_name"], metavar="NAME", help="The new workload's name. [the old one's]"),
        click.Option(
            ["--memory"],
            metavar="SIZE",
            help="The new workload's memory. [the old one's; a VM gets 64M more for its kernel]",
        ),
        click.Option(["--disk"], metavar="SIZE", help="A new VM's root disk. [the image's size]"),
        click.Option(["--confirm"], is_flag=True, help="Delete the old workload as soon as the new one runs."),
        click.Option(["--dry-run"], is_flag=True, help="Only show the new workload, and what it would lack."),
        click.Option(["--detach"], is_flag=True, help="Don't wait."),
        click.Option(
            ["--timeout"],
            type=options.Duration(),
            help="Undo the conversion if the new workload doesn't run by then. [10m]",
        ),
        options.output(),
    ]
    return options.build(verb, f"{entry.summary}.", _run, kind, params)


def _run(session: Session, kind: Kind | None, words: tuple[str, ...], **given: Any) -> int:
    target = _read_target(session, kind, words, given["to"])
    dry, detach = given.pop("dry_run"), given.pop("detach")
    given["timeout_seconds"] = timeout = given.pop("timeout") or DEFAULT_TIMEOUT_SECONDS
    body = {name: value for name, value in given.items() if value is not None}
    old = session.client.get(target.kind.name, target.name)
    asked = _read_input(body)
    manifest = make_conversion(old, asked, "dry")  # refused here as the server would
    translated = _translate(session, old, asked)
    if dry:
        return _preview(session, old, manifest, translated)
    for word in (*translated.left_out, _BEHIND[target.kind.name]):
        if not session.is_data:  # a program finds it in the status
            session.notify(f"left out  {word}")
    made = session.client.verb(target.kind.name, target.name, "convert", body)
    if detach:
        watch = f"weft operation attach {name_operation(made)}{session.in_project}"
        print_one(session, made, f"{target.what}  is being converted; watch: {watch}")
        return OK
    session.timeout_seconds = timeout + BACK_SECONDS
    return _watch(session, made)


def _read_target(session: Session, kind: Kind | None, words: Sequence[str], to: str) -> Target:
    """A bare name is of the kind that it is converted from."""
    if kind is None and len(words) == 1 and "/" not in words[0]:
        kind = BY_NAME[next(name for name in KINDS if name != to)]
        _refuse_converted(session, Target(kind, words[0]), to)
    return find_one(session, kind, words, KINDS, "give one workload")


def _refuse_converted(session: Session, target: Target, to: str) -> None:
    """Raise UsageError for a name that only a workload of the kind to convert to has."""
    try:
        session.client.get(target.kind.name, target.name)
    except NotFound:
        with contextlib.suppress(NotFound):
            session.client.get(to, target.name)
            back = f"weft convert {to}/{target.name} --to {target.kind.name}"
            raise usage(f"{to}/{target.name} is {BY_NAME[to].a_title} already", f"the other way: {back}") from None


def _read_input(body: Mapping[str, Any]) -> ConvertInput:
    """Raises InvalidInput for a size that is none."""
    sizes = {name: parse_bytes(body[name], name) for name in ("memory", "disk") if name in body}
    return msgspec.convert({**body, **sizes}, ConvertInput)


def _translate(session: Session, old: Mapping[str, Any], asked: ConvertInput) -> Translated:
    """The old workload as the other kind. Raises InvalidInput, which names field and remedy, IllegalTransition."""
    check_conversion(ConversionSpec(workload=f"{old['kind']}/{old['name']}", to=asked.to, disk=asked.disk))
    if old["kind"] == "container":
        spec = msgspec.convert(old["spec"], ContainerSpec, strict=False)
        return to_vm(spec, f"of {spec.image}", memory=asked.memory, disk=asked.disk)
    workload_spec = msgspec.convert(old["spec"], VmSpec, strict=False)
    refuse_elsewhere(f"vm/{old['name']}", workload_spec.image)
    image = session.client.get("image", workload_spec.image)
    url, digest = dig(image, "spec.url", ""), dig(image, "status.digest", "")
    if not url.startswith(OCI):
        raise IllegalTransition(
            f"vm/{old['name']} uses image {workload_spec.image}, which is not a container image",
            hint="only VMs with oci:// images can be converted to containers",
        )
    source = read_oci(url)
    pinned = f"{source.registry}/{source.name}@{digest or source.digest}"
    return to_container(workload_spec, source.name if source.place == "held" else pinned, memory=asked.memory)


def _preview(session: Session, old: Mapping[str, Any], manifest: Mapping[str, Any], translated: Translated) -> int:
    """The new workload's spec; nothing is stored."""
    kind, name = read_new(msgspec.convert(manifest["spec"], ConversionSpec))
    try:
        session.client.get(kind, name)
    except NotFound:
        pass
    else:
        raise AlreadyExists(f"{kind}/{name} exists already", hint="give the new workload another name: --as NAME")
    spec = msgspec.to_builtins(translated.spec)
    if session.is_data:
        print_object(session, {"kind": kind, "name": name, "spec": {**spec, "run": old["spec"]["run"]}})
        return OK
    what, before = f"{old['kind']}/{old['name']}", format_bytes(old["spec"]["memory"])
    print(f"{what} → {kind}/{name}, {format_bytes(spec['memory'])} of memory (was {before})")
    for word in ("mounts", "volumes", "networks", "publish"):
        if things := old["spec"].get(word):
            print(f"passed on  {word}: {', '.join(things)}")
    for word in (*translated.left_out, _BEHIND[old["kind"]]):
        print(f"left out   {word}")
    print(f"{what} stops for the conversion, and is kept until you confirm")
    return OK


def _watch(session: Session, made: Mapping[str, Any]) -> int:
    target = Target(BY_NAME["conversion"], made["name"])
    ends = ENDED if made["spec"]["confirm"] else (*ENDED, "AwaitingConfirmation")
    goal = Goal(lambda obj: dig(obj or {}, "status.phase") in ends, "over", ends_failed=False, ends_refused=False)
    where = session.in_project
    parting = f"the conversion goes on; watch: weft wait {target.what}{where}   undo: weft conversion undo {target.name}{where}"
    wait = Wait(target, goal, made["uid"], made.get("project"))
    result = follow_to_end(session, wait, Converting, parting, lambda end: end.error or _find_error(target, end))
    if isinstance(result, int):
        return result
    assert result.obj is not None
    print_one(session, result.obj, describe_end(result.obj, _find_node(session, result.obj)))
    if not session.is_data:
        print(describe_next(result.obj), flush=True)
    return OK


def _find_node(session: Session, conversion: Mapping[str, Any]) -> str:
    kind, _, name = conversion["status"]["new"].partition("/")
    try:
        return str(dig(session.client.get(kind, name), "status.node") or "")
    except WeftError:
        return ""


def _find_error(target: Target, result: Result) -> WeftError | None:
    obj = result.obj or {}
    phase, reason, message = (dig(obj, f"status.{part}", "") for part in ("phase", "reason", "message"))
    if phase in ("AwaitingConfirmation", "Confirmed"):
        return None
    old = dig(obj, "spec.workload")
    began = dig(obj, "status.stopped_at") or phase == "Undone"
    stays = (
        f"{old} has its volumes and addresses again, and runs if it ran before." if began else f"{old} is unchanged."
    )
    text = f"{old} was not converted: {message or reason}"
    hint = f"{stays}  weft describe {target.what}"
    if exit_code(WeftError("", reason=reason)) == UNPLACEABLE:
        return Unplaceable(text, reason=reason, hint=hint)
    return DriverFailed(text, reason=reason if phase == "Failed" and reason else None, hint=hint)
