"""`weft recovery rehearse shop`: recover the VMs of a plan in networks that lead nowhere, and print the measured RPO and RTO.
`weft recovery failover shop`: promote its replicas for real, in the same order, with the same checks."""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from weft.cli.command import options
from weft.cli.command.errors import complain
from weft.cli.command.exit_codes import INTERRUPTED, OK
from weft.cli.command.grammar import Entry
from weft.cli.command.lookup import find_one
from weft.cli.command.target import Target
from weft.cli.output.formats import print_data
from weft.cli.recovery.report import make_report, render_report
from weft.cli.session import Session, in_project_of
from weft.cli.wait.finish import describe_parting, plan_wait
from weft.cli.wait.follow import print_one
from weft.cli.wait.progress import Progress
from weft.cli.wait.watch import follow
from weft.kinds.fields.recovery.run import REHEARSE
from weft.kinds.record import Kind
from weft.kinds.recovery_plan import RECOVERY_PLAN

_ABLE = (RECOVERY_PLAN.name,)


def rehearse_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params = [options.targets(kind, many=False, able=_ABLE), *options.waits(), options.output()]
    words = (
        "Recover the VMs of a plan from the newest points of their replicas, in networks that lead nowhere; run its checks, "
        "measure, and remove all of it again. Replication goes on. The exit code is 0 if all checks passed."
    )
    return options.build(verb, words, _rehearse, kind, params)


def failover_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params = [
        options.targets(kind, many=False, able=_ABLE),
        click.Option(["--force"], is_flag=True, help="Do it even if the cluster that the VMs run at answers."),
        *options.waits(),
        options.output(),
    ]
    words = (
        "Promote the replicas of a plan in its order, and check that the VMs work before the next group. Replicas that were "
        "promoted before are not promoted again, so the command may be repeated. The exit code is 0 if all checks passed."
    )
    return options.build(verb, words, _fail_over, kind, params)


def _rehearse(session: Session, kind: Kind | None, words: tuple[str, ...]) -> int:
    return _run(session, find_one(session, kind, words, _ABLE, "give one recovery plan"), "rehearse", {})


def _fail_over(session: Session, kind: Kind | None, words: tuple[str, ...], force: bool) -> int:
    given = {"force": True} if force else {}
    return _run(session, find_one(session, kind, words, _ABLE, "give one recovery plan"), "failover", given)


def _run(session: Session, target: Target, verb: str, given: dict[str, Any]) -> int:
    asked = session.client.verb(target.kind.name, target.name, verb, given)
    wait = plan_wait(asked, target, verb)
    if session.detach or wait is None:
        noun = "rehearsal" if verb == REHEARSE else verb
        print_one(
            session, asked, f"{target.what}  {noun} requested; weft recovery describe {target.name} shows its result"
        )
        return OK
    session.unfinished = True
    progress = Progress(session.clock.elapsed, color=session.color, only_live=session.output == "json")
    try:
        (result,) = follow(session, [wait], progress)
    except KeyboardInterrupt:
        session.notify(describe_parting([wait], {target.what: verb}, partial(in_project_of, session)))
        return INTERRUPTED
    session.unfinished = False
    report = make_report(result.obj, asked) if result.obj is not None else None
    if report is not None and session.is_document:
        print_data(session, report)
    elif report is not None:
        print(render_report(report), flush=True)
    if result.error is not None:
        return complain(result.error, session.output, session.color, session.debug)
    return OK
