"""Verbs of volumes: attach, detach, resize."""

from __future__ import annotations

from typing import Any

import click

from weft.cli.command import options
from weft.cli.command.grammar import Entry
from weft.cli.command.target import Target
from weft.cli.session import Session
from weft.cli.verbs.set import change, change_options
from weft.cli.wait.finish import Done, finish, plan_wait
from weft.kinds.fields.cells import dig
from weft.kinds.record import Kind
from weft.kinds.registry import BY_NAME
from weft.objects.errors import InUse, NotFound, StaleRevision

_TRIES = 5


def attach_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    """`weft volume attach data web`: add a volume to a VM's spec. A running guest gets it at once, if its machine can take it."""
    words = click.Argument(["words"], nargs=-1, metavar="VOLUME VM")
    sides = ("Attach", "to") if verb == "attach" else ("Detach", "from")

    def run(session: Session, kind: Kind | None, words: tuple[str, ...]) -> int:
        given = list(words)
        if kind is None and len(given) == 3 and given[0] in ("volume", "volumes"):
            del given[0]
        if len(given) != 2:
            raise click.UsageError(f"give a volume and a VM: weft volume {verb} data web")
        return _attach(session, verb, given[0].removeprefix("volume/"), given[1].removeprefix("vm/"))

    return options.build(
        verb, f"{sides[0]} a volume {sides[1]} a VM.", run, kind, [words, *options.waits(), options.output()]
    )


def _attach(session: Session, verb: str, volume: str, vm: str) -> int:
    """Add or remove ``volume``, over other people's changes of the same VM."""
    session.client.get("volume", volume)
    for attempt in range(_TRIES):
        obj = session.client.get("vm", vm)
        volumes = list(dig(obj, "spec.volumes", []))
        if verb == "attach" and volume in volumes:
            raise InUse(f"volume/{volume} is already attached to vm/{vm}")
        if verb == "detach" and volume not in volumes:
            raise NotFound(f"volume/{volume} is not attached to vm/{vm}")
        wanted = [*volumes, volume] if verb == "attach" else [name for name in volumes if name != volume]
        try:
            obj = session.client.patch("vm", vm, {"spec": {"volumes": wanted}, "generation": obj["generation"]})
            break
        except StaleRevision:
            if attempt == _TRIES - 1:
                raise
    line = f"{'attached to' if verb == 'attach' else 'detached from'} vm/{vm}"
    if dig(obj, "status.phase") == "Suspended" or (
        dig(obj, "status.resize_limits") is not None and not _is_live(obj, verb)
    ):
        line += f" at its next start: weft vm restart {vm}"
    wait = plan_wait(obj, Target(BY_NAME["vm"], vm), "update") if dig(obj, "status.phase") == "Running" else None
    return finish(session, [Done(Target(BY_NAME["volume"], volume), obj, "set", line)], [wait] if wait else [])


def _is_live(obj: dict[str, Any], verb: str) -> bool:
    left = dig(obj, "status.resize_limits.volumes")
    return left is not None and (verb == "detach" or left > 0)


def resize_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    """`weft volume resize data 2G`: make a volume larger, also while a VM uses it."""
    volume = BY_NAME["volume"]
    words = click.Argument(["words"], nargs=-1, metavar="VOLUME SIZE")

    def run(session: Session, kind: Kind | None, words: tuple[str, ...], dry_run: bool) -> int:
        given = [word for word in words if word not in ("volume", "volumes")]
        if len(given) != 2:
            raise click.UsageError("give a volume and its new size: weft volume resize data 2G")
        target = Target(volume, given[0].removeprefix("volume/"))
        return change(session, target, {"spec__size": given[1]}, dry_run=dry_run, restart=False)

    return options.build(verb, "Make a volume larger.", run, kind, [words, *change_options(volume)])
