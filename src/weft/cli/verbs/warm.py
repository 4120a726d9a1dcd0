"""`weft image warm debian-12 --memory 512M --cpu 1-4`: keep a booted machine of an image on every node, and wait for it.
Ctrl-C ends the watching only."""

from __future__ import annotations

from typing import Any

import click

from weft.cli.command import options
from weft.cli.command.exit_codes import OK
from weft.cli.command.grammar import Entry
from weft.cli.command.lookup import find_one
from weft.cli.command.target import Target, usage
from weft.cli.session import Session
from weft.cli.wait.follow import follow_to_end, print_one
from weft.cli.wait.progress import Progress
from weft.cli.wait.watch import Result, Wait
from weft.kinds.image import WARM, is_warm, is_warmed
from weft.kinds.parts.goal import find_condition
from weft.kinds.record import Goal, Kind, Object
from weft.objects.errors import DriverFailed, WeftError

ABLE = ("image",)


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    memory = "Memory of the booted machine; a VM with less boots cold. [what the image needs]"
    cpu = "Cores of the VMs that may start from it, like 1-4; it boots with the first. [1-4]"
    params: list[click.Parameter] = [
        options.targets(kind, many=False, able=ABLE),
        click.Option(["--memory"], metavar="SIZE", help=memory),
        click.Option(["--cpu"], metavar="CORES", help=cpu),
        click.Option(["--off"], is_flag=True, help="Keep it on no node any more; the image's VMs boot."),
        *options.waits(),
        options.output(),
    ]
    return options.build(verb, f"{entry.summary}.", _run, kind, params)


def _run(
    session: Session, kind: Kind | None, words: tuple[str, ...], memory: str | None, cpu: str | None, off: bool
) -> int:
    target = find_one(session, kind, words, ABLE, "give one image: they are warmed one at a time")
    given = {name: value for name, value in (("memory", memory), ("cpu", cpu)) if value is not None}
    if off and given:
        raise usage(f"--off with --{next(iter(given))}: a machine that is not kept has neither", "give --off alone")
    body: dict[str, Any] = {"off": True} if off else given
    obj = session.client.verb(target.kind.name, target.name, "warm", body)
    if off:
        print_one(session, obj, f"{target.what}  no longer kept warm: its VMs boot")
        return OK
    if session.detach:
        watch = f"weft wait {target.what} --for=condition={WARM}{session.in_project}"
        print_one(session, obj, f"{target.what}  is being warmed; watch: {watch}")
        return OK
    return _watch(session, target, obj)


def _watch(session: Session, target: Target, obj: dict[str, Any]) -> int:
    goal = Goal(is_warmed, "warm", ends_failed=False, ends_refused=False, asked=f"condition={WARM}")
    where = session.in_project
    parting = (
        f"the nodes go on; watch: weft wait {target.what} --for=condition={WARM}{where}"
        f"   undo: weft image warm {target.name} --off{where}"
    )
    wait = Wait(target, goal, obj["uid"], obj.get("project"))
    result = follow_to_end(session, wait, Warming, parting, lambda end: end.error or _find_error(target, end))
    if isinstance(result, int):
        return result
    assert result.obj is not None
    message = (find_condition(result.obj, WARM) or {}).get("message", "")
    print_one(session, result.obj, f"{target.what}  warm on {message} after {result.seconds:.1f} s")
    return OK


def _find_error(target: Target, result: Result) -> WeftError | None:
    if result.obj is None or is_warm(result.obj):
        return None
    status = result.obj.get("status") or {}
    if status.get("phase") == "Failed":
        return DriverFailed(
            f"{target.what} is not warm: it couldn't be fetched: {status.get('message') or status.get('reason') or ''}",
            hint=f"weft describe {target.what} shows whether another try succeeds; else delete it, and create it again",
        )
    message = (find_condition(result.obj, WARM) or {}).get("message", "")
    return DriverFailed(
        f"{target.what} is not warm: {message}",
        hint=f"VMs of it boot instead; weft describe {target.what} shows whether the nodes do better later",
    )


class Warming(Progress):
    """Shows on how many nodes an image is warm."""

    def show(self, target: Target, obj: Object | None, over: bool = False) -> None:
        found = find_condition(obj, WARM)
        if obj is None or over or found is None:
            super().show(target, None, over)
        elif found.get("generation") == obj["generation"]:
            self.draw(target, f"{target.what}  warm on {found['message']}", found["message"])
