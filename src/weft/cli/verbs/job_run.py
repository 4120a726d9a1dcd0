"""`weft job run thumbs --image … --array 0-99 -- COMMAND`: create a job, show its progress, and end as it did: with 0, or the
exit code of the first of its tasks that failed. The output of an only task is printed here. Ctrl-C ends only the watching."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click

from weft.cli.command import options
from weft.cli.command.errors import complain
from weft.cli.command.exit_codes import INTERRUPTED, OK
from weft.cli.command.flags import make_flags
from weft.cli.command.grammar import Entry
from weft.cli.command.lookup import is_image
from weft.cli.command.target import Target
from weft.cli.job.attach import TaskOutput, has_one_task
from weft.cli.output.local_time import render_time
from weft.cli.preview.dry_run import show_dry_run
from weft.cli.session import Session
from weft.cli.stream.logs import show_last_lines
from weft.cli.verbs.create import read_spec, read_words
from weft.cli.wait.follow import print_one
from weft.cli.wait.progress import Progress
from weft.cli.wait.watch import Wait, follow
from weft.kinds.fields.cells import dig
from weft.kinds.job import first_exit_code, task_name
from weft.kinds.operation import name_operation, plan_goal
from weft.kinds.record import Kind
from weft.kinds.registry import BY_NAME
from weft.objects.errors import NotFound
from weft.objects.index_ranges import read_indexes

WAIT_SECONDS = 10 * 365 * 86400.0
_REPORT_SECONDS = 10  # percent, off a terminal
_POLL_SECONDS = 0.1
Object = Mapping[str, Any]


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params: list[click.Parameter] = [
        click.Argument(["words"], nargs=-1, metavar="[[NAME] IMAGE] [-- COMMAND...]"),
        *make_flags(BY_NAME["job"]),
        *options.making(),
        *options.dry_runs(),
        click.Option(["--wait"], is_flag=True, expose_value=False, help="Wait until the job has ended (default)."),
        options.detach(),
        options.timeout("How long to wait; afterwards the job goes on. [until it ends]"),
        options.output(),
    ]
    summary = (
        "Run a job and wait for it; print the output of its only task, and exit as the job did. The name is optional."
    )
    return options.build(verb, summary, _run, kind, params, command_class=options.WithOwnCommand)


def _run(session: Session, kind: Kind | None, words: tuple[str, ...], dry_run: str | None, **given: Any) -> int:
    job = BY_NAME["job"]
    manifest, _ = read_spec(session, job, read_words(session, job, words, given, make_up=True), given, make_up=True)
    target = Target(job, manifest["name"])
    if dry_run == "client":
        print_one(session, manifest, f"{target.what}  would be created; no server was contacted")
        return OK
    try:
        made = session.client.create(manifest, dry_run=bool(dry_run))
    except NotFound as missing:
        _suggest_command(session, words, missing)
        raise
    if dry_run:
        return show_dry_run(session, target, made, "run")
    if dig(made, "spec.schedule"):
        return _await_schedule(session, target, made)
    if session.detach:
        watch = f"weft operation attach {name_operation(made)}{session.in_project}"
        print_one(session, made, f"{target.what}  created; watch: {watch}")
        return OK
    return watch_job(session, target, made)


def _suggest_command(session: Session, words: tuple[str, ...], missing: NotFound) -> None:
    """Suggest the command line: in IMAGE COMMAND, the command was read as the missing image."""
    if len(words) == 2 and missing.field == "spec.task.image" and is_image(session, words[0]):
        missing.hint = f"put the command after --: {options.retype(1)}"


def _await_schedule(session: Session, target: Target, made: Object) -> int:
    """Print when it runs first."""
    if session.detach:
        print_one(session, made, f"{target.what}  scheduled")
        return OK
    session.timeout_seconds = session.timeout_seconds or 30.0
    (result,) = follow(session, [_wait(target, made)], Progress(session.clock.elapsed, only_live=True))
    if result.error is not None:
        return complain(result.error, session.output, session.color, session.debug)
    first = dig(result.obj or {}, "status.next_run")
    print_one(session, result.obj or made, f"{target.what}  Scheduled; first at {render_time(first)}")
    return OK


def watch_job(session: Session, target: Target, job: Object) -> int:
    """Show its progress until it has ended; its own exit code."""
    session.timeout_seconds = WAIT_SECONDS if session.timeout_seconds is None else session.timeout_seconds
    settings: dict[str, Any] = {"color": session.color, "only_live": session.output == "json"}
    output = TaskOutput(session) if has_one_task(job) and not session.is_data else None
    progress = (
        Attached(output, session.clock.elapsed, **settings) if output else Counting(session.clock.elapsed, **settings)
    )
    ended = False
    try:
        (result,) = follow(session, [_wait(target, job)], progress)
        ended = result.obj is not None and dig(result.obj, "status.ended_at") is not None
        if output is not None and ended:
            output.release()
            output.end()
    except KeyboardInterrupt:
        where = session.in_project
        session.notify(
            f"the job goes on; watch: weft wait {target.what}{where}   undo: weft job cancel {target.name}{where}"
        )
        return INTERRUPTED
    except BrokenPipeError:
        if not ended:  # if nobody reads this either, it raises the same
            session.notify(
                f"output closed; {target.what} goes on; see: weft logs {target.what}   end: weft delete {target.what}"
            )
        raise
    if result.error is None:
        assert result.obj is not None
        total = dig(result.obj, "status.tasks", 0)
        tasks = f"{total} task{'s' if total != 1 else ''}"
        line = f"{target.what}  Succeeded: {tasks} in {result.seconds:.1f} s"
        if output is not None:
            session.notify(line)  # standard output is the task's
        else:
            print_one(session, result.obj, line)
        return OK
    was_seen = output is not None and ended and not output.is_missing
    if not was_seen and session.output != "json" and (task := find_failed_task(result.obj or {})) is not None:
        show_last_lines(session, Target(BY_NAME["container"], task))
    code = complain(result.error, session.output, session.color, session.debug)
    return first_exit_code(result.obj or {}) if ended else code


def _wait(target: Target, job: Object) -> Wait:
    goal = plan_goal("job", "run")
    assert goal is not None
    return Wait(target, goal, job["uid"], job.get("project"))


def find_failed_task(job: Object) -> str | None:
    """The container of the failed task with the lowest index, as it was tried last; None if none failed."""
    failed = read_indexes(dig(job, "status.failed_indexes") or "")
    tries = dig(job, "status.tries") or {}
    if not failed:
        return None
    attempt = next((int(count) for count, indexes in tries.items() if failed[0] in read_indexes(indexes)), 1)
    return task_name(job["name"], failed[0], attempt)


def describe_counts(job: Object) -> str:
    """``12/100 done   10 running   1 failed   3 retried``"""
    status = job.get("status") or {}
    parts = [f"{status.get('succeeded', 0)}/{status.get('tasks', 0)} done"]
    parts += [f"{status[word]} {word}" for word in ("running", "failed", "retried", "lost") if status.get(word)]
    note = status.get("message") if status.get("reason") in ("tasksWait", "waiting", "nameTaken") else ""
    return "   ".join([*parts, *([str(note)] if note else [])])


class Counting(Progress):
    """Shows a job: on a terminal its counts as they change, off it a line now and then and each failure."""

    _failure = ""

    def show(self, target: Target, obj: Object | None, over: bool = False) -> None:
        if obj is not None and dig(obj, "status.reason") == "taskFailed":
            failure = dig(obj, "status.message", "")
            if failure != self._failure:
                self._failure = failure
                self.notify(failure)
        if obj is None or over or not dig(obj, "status.tasks"):
            super().show(target, None, over)
            return
        counts, status = describe_counts(obj), obj.get("status") or {}
        done = 100 * status.get("succeeded", 0) // max(1, status.get("tasks", 0))
        note = status.get("message") if status.get("reason") in ("tasksWait", "waiting", "nameTaken") else ""
        phase = dig(obj, "status.phase", "Pending")
        going = phase in ("Waiting", "Running")  # it is now one, now the other
        self.draw(target, f"{target.what}  {phase}   {counts}", f"{going or phase} {done // _REPORT_SECONDS} {note}")


class Attached(Counting):
    """Shows a job of one task until the task prints something; then its output, and its failures."""

    def __init__(self, output: TaskOutput, elapsed: Callable[[], float], **settings: Any) -> None:
        super().__init__(elapsed, **settings)
        self._output, self._gives_way = output, False

    @property
    def animated(self) -> bool:
        return super().animated and not self._gives_way

    @property
    def due_seconds(self) -> float | None:
        return _POLL_SECONDS

    def show(self, target: Target, obj: Object | None, over: bool = False) -> None:
        if obj is not None:
            self._output.see(obj)
        super().show(target, obj, over)

    def draw(self, target: Target, live: str, line: str) -> None:
        if not self._gives_way:
            super().draw(target, live, line)

    def tick(self) -> None:
        """Raises OSError if its output can't be printed."""
        self._output.check()
        if self._output.has_come and not self._gives_way:
            self._gives_way = True
            self.end()
            self._output.release()
        super().tick()
