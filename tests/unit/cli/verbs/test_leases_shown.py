"""What `weft lease list` and `weft explain` show of leases, by the objects as the server has them."""

from __future__ import annotations

from typing import Any

import pytest

from weft.cli.command.target import Target
from weft.cli.output.form import Form
from weft.cli.output.rows import draw_rows
from weft.cli.output.table import make_columns
from weft.cli.session import Session
from weft.cli.verbs import explain, lease
from weft.contracts.clock import SystemClock
from weft.kinds.registry import BY_NAME
from weft.objects.errors import Unavailable

LOW = Target(BY_NAME["vm"], "low")


@pytest.fixture
def session() -> Session:
    return Session(SystemClock, {"WEFT_SERVER": "https://127.0.0.1:1"})


def vm(phase: str = "Running", **status: Any) -> dict[str, Any]:
    spec = {"lease": {"mode": "best-effort"}}
    return {"kind": "vm", "name": "low", "project": "lab", "spec": spec, "status": {"phase": phase, **status}}


@pytest.mark.parametrize("form", ["table", "csv"])
def test_leases_of_all_projects_are_listed_with_their_project(
    session: Session, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    session.given_form = Form(form)
    session.all_projects = True
    lease._print(session, [lease.read_lease(vm())])
    title, row = capsys.readouterr().out.splitlines()
    assert title.split()[0].split(",")[0] == "PROJECT" and row.split()[0].split(",")[0] == "lab"
    session.all_projects = False
    lease._print(session, [lease.read_lease(vm())])
    assert "lab" not in capsys.readouterr().out


def test_what_was_suspended_for_another_is_explained_with_when_it_may_resume(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = [{"workload": "vm/low", "expected_start": 1_795_571_023.0}]
    monkeypatch.setattr(explain, "ask", lambda *_: {"status": {"queue": queue}})
    preempted = vm("Suspended", reason="preempted", message="suspended for vm/high")
    shown = explain._explain_suspension(session, LOW, preempted)
    assert "vm/low is suspended for vm/high; it resumes at 2026-11-2" in shown
    queue[0]["expected_start"] = None  # type: ignore[assignment]
    assert "it resumes when it fits again" in explain._explain_suspension(session, LOW, preempted)


def test_what_people_suspended_is_explained_with_how_to_resume_it(session: Session) -> None:
    assert explain._explain_suspension(session, LOW, vm()) == ""
    assert "weft vm resume low" in explain._explain_suspension(session, LOW, vm("Suspended"))


def test_a_list_of_jobs_80_columns_wide_says_what_each_waits_for() -> None:
    why = {"phase": "Running", "reason": "tasksWait", "message": "task 0: needs 99 cpu"}
    job = {"name": "big", "spec": {"task": {"image": "busybox"}}, "status": {"tasks": 1, **why}, "created_at": 0}
    shown = [column for column in BY_NAME["job"].display.columns if not column.wide]
    signs = [column.title + ">" * (column.align == "right") + "~" * column.flexible for column in shown]
    drawn = draw_rows(Form(), make_columns(*signs), [[column.value(job) for column in shown]], 80)
    assert "tasksWait: task 0: needs 99" in drawn and "SCHEDULE" not in drawn


def test_an_extension_goes_on_and_counts_once_while_the_server_is_started_again(
    session: Session, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    leased = {"kind": "vm", "name": "low", "spec": {"lease": {"duration": 60.0}}}
    done, keys, away = (
        {**leased, "status": {"lease": {"start": 1.0, "end": 61.0}}},
        list[Any](),
        [True, False, True, False],
    )

    class Restarted:
        def verb(self, *words: Any, idempotency_key: str) -> Any:
            keys.append((*words, idempotency_key))
            return self.get() and {**leased, "status": {"lease": {"start": 1.0, "end": 31.0}}}

        def get(self, *_: Any) -> Any:
            if away.pop(0):
                raise Unavailable("no server answers")
            return done

    monkeypatch.setattr(lease, "find_targets", lambda *_: [LOW])
    monkeypatch.setattr(session, "make_client", Restarted)
    monkeypatch.setattr(session, "rests", lambda seconds: True)
    assert lease._run(session, None, "extend", ("vm/low",), 30.0, False) == 0
    assert "lease extended: ends 1970" in capsys.readouterr().out
    assert not away and len(keys) == 2 and keys[0] == keys[1]
