"""The end of every command that changes something: wait for completion, show the progress, report the end.

The exit code: 0 reached, 6 no node fits, 7 time is up, 1 it failed, 130 interrupted; the work goes on in all of them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from weft.cli.command.errors import complain
from weft.cli.command.exit_codes import INTERRUPTED, OK, TIMED_OUT, join_codes
from weft.cli.command.target import Target
from weft.cli.output.formats import print_list, print_object
from weft.cli.placement.decision import explain_refusal
from weft.cli.session import Session, in_project_of
from weft.cli.wait.progress import Progress
from weft.cli.wait.watch import Result, Wait, describe_wait, follow
from weft.kinds.fields.cells import dig
from weft.kinds.operation import name_operation, plan_goal
from weft.kinds.parts.goal import UNPLACEABLE, find_condition
from weft.kinds.parts.workload import OUT_OF_REACH
from weft.kinds.record import Goal, Object
from weft.kinds.registry import BY_NAME, is_workload
from weft.objects.errors import NotFound, TimedOut, Unplaceable, WeftError

_MOST_NAMED = 10
_UNDOES = {
    "create": "delete",
    "stop": "start",
    "start": "stop",
    "suspend": "resume",
    "resume": "suspend",
    "hold": "release",
}
_DONE = {
    "create": "created",
    "update": "changed",
    "set": "changed",
    "unchanged": "unchanged",
    "hold": "held",
    "retry": "retried",
    "resend": "resent",
    "cancel": "cancelled",
    "undo": "undo requested",
    "run-alone": "runs alone, and is automatic no more: weft replication set NAME --automatic turns that on again",
    "take-back": "taken back",
    "confirm-off": "confirmed as off: its guests with on_node_loss restart start elsewhere once their time there is over",
    "reclaim": "goes on here: make sure that it never runs at the other cluster",
}
_DONE_OF = {("volume", "reclaim"): "is an ordinary volume now"}
_PLACING = ("create", "update", "release", "wait")  # verbs after which a VM may get its node


class Done(NamedTuple):
    """The change that the server has accepted: the object that it answered with, the verb that did it. ``line`` is printed
    immediately, also if a wait follows."""

    target: Target
    obj: Object
    verb: str
    line: str = ""


def plan_wait(obj: Object, target: Target, verb: str, before: Object | None = None) -> Wait | None:
    """Plan what to wait for after ``verb`` was accepted with ``obj`` as the answer; None: nothing. What is ``unchanged`` may have
    failed or still be on its way since an earlier command: that one is waited for, too."""
    is_unchanged = verb == "unchanged"
    goal = plan_goal(target.kind.name, "update" if is_unchanged else verb, before)
    if goal is None or (is_unchanged and goal.reached(obj)):
        return None
    takes = goal.takes(obj) if goal.takes is not None else 0.0
    return Wait(target, goal, obj.get("uid", ""), obj.get("project"), takes)


def plan_waits(done: Sequence[Done]) -> list[Wait]:
    """Plan what to wait for after all of ``done``."""
    return [wait for one in done if (wait := plan_wait(one.obj, one.target, one.verb)) is not None]


def finish_one(session: Session, target: Target, obj: Object, verb: str, line: str = "") -> int:
    """``finish`` for one object, with the wait that ``verb`` has. A new one that only a try could check isn't kept if that fails:
    its name is free for the next try."""
    wait = plan_wait(obj, target, verb)
    code = finish(session, [Done(target, obj, verb, line)], [wait] if wait else [])
    if verb == "create" and target.kind.lifetime.remedy and code not in (OK, TIMED_OUT, INTERRUPTED):
        _take_away(session, target, obj)
    return code


def _take_away(session: Session, target: Target, obj: Object) -> None:
    try:
        session.client.delete(target.kind.name, target.name, project=obj.get("project"), uid=obj["uid"])
    except NotFound:
        return
    except WeftError as problem:  # somebody uses it already, or only others may delete it
        session.notify(f"{target.what} is kept: {problem.message}")
        return
    session.notify(f"{target.what} was not kept")


def finish(session: Session, done: Sequence[Done], waits: Sequence[Wait], *, is_last: bool = True) -> int:
    """Print the results of ``done``, and, unless detached, how each of ``waits`` ended. Without ``is_last`` the wait is only a part
    of what the command does, and who interrupts it means the whole: raises KeyboardInterrupt."""
    going_on = {wait.target.what for wait in waits} if session.detach else set()
    going_on -= {one.target.what for one in done if _ends_operation(one)}  # which can't be attached to: it has failed
    waits = () if session.detach else waits
    session.unfinished = bool(waits)
    waited = {wait.target.what for wait in waits}
    at_once = [one for one in done if one.target.what not in waited]
    if not session.is_data:
        for one in done:
            if one.target.what not in waited or one.line:
                where = in_project_of(session, one.obj.get("project"))
                goes_on = f"; operation {name_operation(one.obj)}{where}" if one.target.what in going_on else ""
                silence = describe_silence(one.obj) if session.detach and one.verb != "unchanged" else ""
                print(
                    f"{one.target.what}  {one.line or _word(session, one.verb, one.target.kind.name)}{silence}{goes_on}",
                    flush=True,
                )
    if not waits:
        _print_all(session, [one.obj for one in at_once])
        return OK
    verbs = {one.target.what: one.verb for one in done}
    places = any(verb in _PLACING for verb in verbs.values())
    progress = Progress(
        session.clock.elapsed,
        _decision_finder(session) if places else None,
        color=session.color,
        only_live=session.output == "json",  # a program reads standard error too: the error, and nothing before it
    )
    try:
        results = follow(session, waits, progress)
    except KeyboardInterrupt:
        if not is_last:
            raise
        session.notify(describe_parting(waits, verbs, partial(in_project_of, session)))
        return INTERRUPTED
    session.unfinished = False
    _print_all(session, [one.obj for one in at_once] + [r.obj for r in results if r.obj is not None])
    return join_codes(_report(session, result, verbs.get(result.wait.target.what, "")) for result in results)


def describe_silence(obj: Object) -> str:
    """Describe the silence after a change to a workload whose node doesn't hear of it yet, where nobody waits and would see that;
    else ""."""
    if dig(obj, "status.reason") not in OUT_OF_REACH:
        return ""
    return f"; node {dig(obj, 'status.node')} sends no heartbeat, so nothing changes there before it is back"


def _report(session: Session, result: Result, verb: str) -> int:
    target = result.wait.target
    if result.error is not None:
        if target.kind.display.shows_output and result.obj is not None and session.output != "json":
            if dig(result.obj, "status.phase") == "Failed":
                printed = importlib.import_module("weft.cli.stream.logs")  # with all that streams need: for this alone
                printed.show_last_lines(session, target, result.wait.project)
        error = explain(session, result, result.error)
        remedy = target.kind.lifetime.remedy
        if verb == "create" and remedy is not None and not isinstance(error, TimedOut):
            error.hint = remedy((result.obj or {}).get("spec", {}))
        return complain(error, session.output, session.color, session.debug)
    if not session.is_data:
        goal, obj = result.wait.goal, result.obj
        remark = goal.remark(obj) if goal.remark is not None and obj is not None else ""
        besides = f"; {remark}" if remark else ""
        print(f"{target.what}  {_ending(goal, obj, verb)} after {result.seconds:.1f} s{besides}", flush=True)
    return OK


def _ends_operation(done: Done) -> bool:
    declared = done.target.kind.lifetime.operation
    return declared is not None and done.verb == declared.cancel


def _ending(goal: Goal, obj: Object | None, verb: str) -> str:
    if obj is None:
        return "deleted" if verb == "delete" else "gone"
    if verb == "verify":
        return "booted" if dig(obj, "status.verify.how") == "boot" else "read"
    if goal.answer is not None:
        return goal.answer(obj)
    phase = dig(obj, "status.phase") if not goal.asked.startswith("condition=") else None
    node = dig(obj, "status.node") if is_workload(obj["kind"]) else None
    where = [*(["on", node] if node else [])]
    if dig(obj, "status.lease.state") == "Scheduled" and phase == "Prolog":
        start = importlib.import_module("weft.cli.output.local_time").render_time(dig(obj, "status.lease.start"))
        return " ".join(["Scheduled", *where, "from", start])
    return " ".join([str(phase or goal.words), *where])


def explain(session: Session, result: Result, error: WeftError) -> WeftError:
    """``error``; for a VM that no node takes with each node's reason, from the scheduler's decision on this very spec. One that has
    its place, and only can't be changed there, says so itself."""
    target, project, placed = result.wait.target, result.wait.project, find_condition(result.obj, "Placed")
    if not (isinstance(error, Unplaceable) and error.token in UNPLACEABLE and is_workload(target.kind.name)):
        return error
    if placed is not None and placed["status"] == "True":
        return error
    decision = find_decision(session, target, project)
    if dig(decision or {}, "spec.generation", 0) not in (0, (result.obj or {}).get("generation", 0)):
        decision = {"spec": {"message": placed["message"]}} if placed is not None else None
    return explain_refusal(error, decision, target.what, in_project_of(session, project))


def find_decision(session: Session, target: Target, project: str | None = None) -> Object | None:
    """Why the workload is where it is; None when nothing was decided yet. ``project``: which it is in, None: the session's. A
    restore makes workloads in others, and one of the same name may be in the session's."""
    try:
        return session.client.get("decision", f"{target.kind.name}.{target.name}", project=project)
    except NotFound:
        return None


def _decision_finder(session: Session) -> Callable[[Target, str | None], Object | None]:
    def find(target: Target, project: str | None) -> Object | None:
        try:
            return find_decision(session, target, project)
        except WeftError:
            return None  # the line is a courtesy; what matters comes over the watch

    return find


def _word(session: Session, verb: str, kind: str = "") -> str:
    if session.detach and verb in ("delete", "start", "stop", "restart", "suspend", "resume"):
        return f"{verb} requested"
    own = _DONE_OF.get((kind, verb))
    return own or _DONE.get(verb) or verb + ("d" if verb.endswith("e") else "ed")


def _print_all(session: Session, objects: Sequence[Object]) -> None:
    if not session.is_data:
        return
    if len(objects) == 1:
        print_object(session, objects[0])
    elif objects:
        print_list(session, objects, [BY_NAME[name] for name in dict.fromkeys(obj["kind"] for obj in objects)])


def describe_parting(
    waits: Sequence[Wait], verbs: Mapping[str, str], in_project_of: Callable[[str | None], str] = lambda _: ""
) -> str:
    """Describe, for a person who stops watching, how to resume, and how to undo the command. ``in_project_of`` ends what to type
    for objects of a project: those of one are named, as a name means another object elsewhere."""
    verb, asked = verbs.get(waits[0].target.what, ""), waits[0].goal.asked
    project = next((one.project for one in waits if one.project is not None), None)
    alike = [
        one
        for one in waits
        if (verbs.get(one.target.what, ""), one.goal.asked) == (verb, asked) and one.project in (None, project)
    ][:_MOST_NAMED]
    more = f", and {len(waits) - len(alike)} more" if len(waits) > len(alike) else ""
    where = in_project_of(project)
    if verb == "delete":
        return f"still being deleted{more}; watch: {describe_wait(*alike)}{where}"
    names = " ".join(one.target.what for one in alike)
    undo = f"   undo: weft {_UNDOES[verb]} {names}{where}" if verb in _UNDOES else ""
    return f"the work goes on{more}; watch: {describe_wait(*alike)}{where}{undo}"
