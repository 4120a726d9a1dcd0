"""Logs of guests and jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from weft.cli.command import options
from weft.cli.command.completion import complete_name
from weft.cli.command.grammar import PLACED, Entry, able
from weft.cli.command.lookup import find_one, resolve
from weft.cli.command.target import Target, read_targets, usage
from weft.cli.job.logs import follow_tasks, read_tries
from weft.cli.logs.aggregate import show_aggregate
from weft.cli.logs.reader import Named
from weft.cli.logs.server import find_servers, take_processes
from weft.cli.session import Session
from weft.cli.stream.logs import ask_log, show_log, show_logs
from weft.kinds.fields.cells import dig
from weft.kinds.job import task_name
from weft.kinds.parts.stream_verbs import NODE_LOGS
from weft.kinds.record import Kind
from weft.kinds.registry import BY_NAME
from weft.objects.errors import NotFound
from weft.objects.index_ranges import read_indexes

Object = Mapping[str, Any]


def job_logs_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    """`weft job logs thumbs --task 3 -f`: what a job's tasks printed, as long as their containers are kept."""
    params = [
        options.targets(kind, many=False, able=("job",)),
        click.Option(["-t", "--task"], type=click.IntRange(min=0), metavar="INDEX", help="Show only this task's log."),
        click.Option(
            ["--try", "attempt"],
            type=click.IntRange(min=1),
            metavar="N",
            help="Show this try's log, not the last one's.",
        ),
        click.Option(["-f", "--follow"], is_flag=True, help="Keep showing new output, also of tasks that begin later."),
        click.Option(
            ["-n", "--tail"],
            type=click.IntRange(min=-1),
            default=-1,
            metavar="N",
            help="Show only the last N lines of each.",
        ),
        click.Option(
            ["--prefix/--no-prefix"], default=None, help="With -f: begin each line with the task. [if several]"
        ),
        click.Option(["--since"], type=options.Duration(), default=None, help="Show lines newer than this, like 5m."),
        *_choosing(),
    ]
    return options.build(verb, "Show the logs of a job's tasks.", _job_logs, kind, params)


def _job_logs(
    session: Session,
    kind: Kind | None,
    words: tuple[str, ...],
    task: int | None,
    attempt: int | None,
    follow: bool,
    tail: int,
    prefix: bool | None,
    since: float | None,
    **choosing: Any,
) -> int:
    target = find_one(session, kind, words, ("job",), "give one job")
    if _aggregates(session, choosing):
        job = session.client.get("job", target.name)
        containers = list_newest(job)
        if task is not None:
            tries = attempt or read_tries(job).get(task, 1)
            containers = [Target(BY_NAME["container"], task_name(target.name, task, tries))]
        asked = _ask_aggregate(follow, tail, since, choosing)
        return show_aggregate(session, containers, asked, prefix=prefix is not False)
    return show_job_logs(session, target, ask_log(follow, tail, since), task, attempt, prefix)


def show_job_logs(
    session: Session,
    target: Target,
    asked: dict[str, Any],
    task: int | None = None,
    attempt: int | None = None,
    prefix: bool | None = None,
) -> int:
    """Its tasks' logs: of one ``task`` unchanged, of several with the task before each line; ``asked`` as the verb takes it."""
    job = session.client.get("job", target.name)
    _refuse_schedule(job)
    tries = read_tries(job)
    if task is None and len(read_indexes(dig(job, "spec.array", "0"))) == 1:
        task = read_indexes(dig(job, "spec.array", "0"))[0]
    if task is not None:
        if task not in tries:
            raise NotFound(f"job/{job['name']} has not started task {task}", hint=f"weft job describe {job['name']}")
        return _show(session, job, task, attempt or tries[task], asked)
    if attempt is not None:
        raise click.UsageError("a try needs its task: --task INDEX")
    if asked["follow"]:
        return follow_tasks(session, job, asked, prefix is not False)
    return _show_all(session, job, tries, asked)


def list_newest(job: Object) -> list[Target]:
    """The containers of the newest try of each task that was begun. Raises UsageError for a job that only has runs."""
    _refuse_schedule(job)
    tries = read_tries(job)
    return [Target(BY_NAME["container"], task_name(job["name"], task, tries[task])) for task in sorted(tries)]


def _refuse_schedule(job: Object) -> None:
    if dig(job, "spec.schedule"):
        raise click.UsageError(
            f"{job['name']} runs on a schedule; each run is a job: weft job list -l job={job['name']}"
        )


def _show(session: Session, job: Object, task: int, attempt: int, asked: dict[str, Any]) -> int:
    try:
        return show_log(session, Target(BY_NAME["container"], task_name(job["name"], task, attempt)), asked)
    except NotFound:
        kept = dig(job, "spec.keep_tasks", 0)
        raise NotFound(
            f"job/{job['name']}: the logs of task {task}, try {attempt}, are no longer kept",
            hint=f"the newest {kept} ended tasks keep their logs (keep_tasks)",
        ) from None


def _show_all(session: Session, job: Object, tries: Mapping[int, int], asked: dict[str, Any]) -> int:
    gone = 0
    for task in sorted(tries):
        name = task_name(job["name"], task, tries[task])
        try:
            session.client.get("container", name)
        except NotFound:
            gone += 1
            continue
        session.notify(f"==> {name} <==")
        show_log(session, Target(BY_NAME["container"], name), asked)
    if gone:
        session.notify(f"{gone} of {len(tries)} tasks' logs are no longer kept (keep_tasks)")
    return 0


def logs_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    """`weft vm logs web -f --tail 20`, `weft logs vm/a container/b -f`, `weft vm logs -l app=shop -f`: what guests printed."""
    params = [
        options.targets(kind, required=False, able=entry.kinds),
        click.Option(["-f", "--follow"], is_flag=True, help="Keep showing new output, also after a lost connection."),
        click.Option(
            ["-n", "--tail"],
            type=click.IntRange(min=-1),
            default=-1,
            metavar="N",
            help="Show only the last N lines of each.",
        ),
        click.Option(["--prefix/--no-prefix"], default=None, help="Begin each line with its guest. [if several]"),
        click.Option(["--since"], type=options.Duration(), default=None, help="Show lines newer than this, like 5m."),
        *_choosing(),
        *([_deleted()] if kind is None or kind.name in PLACED else ()),
        *(_workloads() if kind is None else ()),
        *options.selectors(kind),
    ]
    whose = "a function's invocations" if kind is not None and kind.workload is None else "guests"
    return options.build(verb, f"Show the logs of {whose}.", _logs, kind, params)


def _logs(
    session: Session,
    kind: Kind | None,
    words: tuple[str, ...],
    follow: bool,
    tail: int,
    prefix: bool | None,
    labels: tuple[str, ...],
    fields: tuple[str, ...],
    since: float | None = None,
    vm: tuple[str, ...] = (),
    container: tuple[str, ...] = (),
    server: bool = False,
    deleted: bool = False,
    **choosing: Any,
) -> int:
    words = (*words, *(f"vm/{name}" for name in vm), *(f"container/{name}" for name in container))
    if kind is None:
        words, processes = take_processes(words, all_of_them=server)
        if processes:
            if deleted:
                raise usage("--deleted applies to workloads, not to server processes", "leave out --deleted")
            found = _find(session, kind, words, ",".join(labels), ",".join(fields)) if words or labels or fields else ()
            processes = find_servers(session, processes)
            named: list[Named] = [*processes, *(one for target in found for one in _open_job(session, target, follow))]
            asked = _ask_aggregate(follow, tail, since, choosing)
            return show_aggregate(session, named, asked, prefix=len(named) > 1 if prefix is None else prefix)
    if deleted:
        return _show_deleted(session, kind, words, _ask_aggregate(follow, tail, since, choosing), prefix)
    aggregates = _aggregates(session, choosing)
    targets = _find(session, kind, words, ",".join(labels), ",".join(fields), all_of_none=aggregates)
    if aggregates or any(target.kind.verb("logs") is NODE_LOGS for target in targets):  # which has no other form
        targets = [one for target in targets for one in _open_job(session, target, follow)]
        asked = _ask_aggregate(follow, tail, since, choosing)
        return show_aggregate(session, targets, asked, prefix=len(targets) > 1 if prefix is None else prefix)
    if len(targets) == 1 and targets[0].kind.verb("logs") is None:
        return show_job_logs(session, targets[0], ask_log(follow, tail, since), prefix=prefix)
    targets = [one for target in targets for one in _open_job(session, target, follow)]
    if len(targets) == 1 and not prefix and not follow:
        return show_log(session, targets[0], ask_log(follow, tail, since))
    shown = len(targets) > 1 if prefix is None else prefix
    return show_logs(session, targets, follow=follow, tail=tail, since=since, prefix=shown)


def _show_deleted(
    session: Session, kind: Kind | None, words: tuple[str, ...], asked: dict[str, Any], prefix: bool | None
) -> int:
    """Show logs of workloads that don't exist any more."""
    if asked["follow"]:
        raise usage("--deleted can't be given with -f: nothing follows", "leave one of them out")
    targets = read_targets(kind, words, PLACED if kind is None else (kind.name,))
    shown = len(targets) > 1 if prefix is None else prefix
    return show_aggregate(session, targets, {**asked, "deleted": True}, prefix=shown)


def _deleted() -> click.Parameter:
    return click.Option(
        ["--deleted"],
        is_flag=True,
        help="Show what the newest deleted one with this name printed, as long as it is kept.",
    )


def _open_job(session: Session, target: Target, follow: bool) -> list[Target]:
    """A job's tasks, to show beside other workloads."""
    if target.kind.verb("logs") is not None:
        return [target]
    if follow:
        session.notify(
            f"{target.what}: tasks that begin later are not shown; weft job logs {target.name} -f shows them"
        )
    return list_newest(session.client.get("job", target.name))


def _choosing() -> list[click.Parameter]:
    """Options that choose lines, from the stores of logs that the nodes keep."""
    return [
        click.Option(
            ["--aggregate"],
            is_flag=True,
            help="Show lines with their times, of several workloads by time, from all that the nodes keep.",
        ),
        click.Option(["--until"], type=options.Duration(), default=None, help="Show lines older than this, like 1m."),
        click.Option(["--filter"], metavar="TEXT", default=None, help="Show only lines with this text."),
        click.Option(
            ["--regex"], metavar="PATTERN", default=None, help="Show only lines that this regular expression matches."
        ),
        options.output(),
    ]


def _workloads() -> list[click.Parameter]:
    named = [
        click.Option(
            [f"--{name}"], multiple=True, metavar="NAME", help=f"This {title}.", shell_complete=complete_name(name)
        )
        for name, title in (("vm", "VM"), ("container", "container"))
    ]
    return [*named, click.Option(["--server"], is_flag=True, help="What the server's own processes log.")]


def _aggregates(session: Session, choosing: Mapping[str, Any]) -> bool:
    """The other flags have no meaning without that one."""
    return (
        session.given_form is not None
        or session.jq is not None
        or any(value is not None and value is not False for value in choosing.values())
    )


def _ask_aggregate(follow: bool, tail: int, since: float | None, choosing: Mapping[str, Any]) -> dict[str, Any]:
    given = {name: choosing[name] for name in ("until", "filter", "regex") if choosing[name] is not None}
    return {**ask_log(follow, tail, since), **given}


def _find(
    session: Session, kind: Kind | None, words: tuple[str, ...], labels: str, fields: str, *, all_of_none: bool = False
) -> Sequence[Target]:
    """``all_of_none``: without names and selectors, all in the project."""
    if not labels and not fields and (words or not all_of_none):
        return resolve(session, kind, words, (*able("logs"), "job") if kind is None else (kind.name,))
    if words:
        raise click.UsageError("give either names or a selector, not both")
    kinds = [kind.name] if kind is not None else PLACED
    found = [
        Target(BY_NAME[name], item["name"])
        for name in kinds
        for item in session.client.list(name, labels=labels, fields=fields).items
    ]
    if not found:
        session.notify("no object matches")
    return found
