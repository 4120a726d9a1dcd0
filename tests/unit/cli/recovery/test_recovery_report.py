"""The report of a run: figures and checks as programs read them, and as rows for people."""

from __future__ import annotations

from typing import Any

from weft.cli.recovery.report import describe_runs, leave_out_runs, make_report, render_report

RESULT: dict[str, Any] = {
    "mode": "rehearse",
    "generation": 2,
    "phase": "Failed",
    "started_at": 1.0,
    "ended_at": 100.0,
    "rpo_seconds": 13.74,
    "rto_seconds": None,
    "checks": [
        {"vm": "r-db", "type": "running", "target": "", "passed": True, "seconds": 3.1, "message": ""},
        {
            "vm": "r-web",
            "type": "tcp",
            "target": "80",
            "passed": False,
            "seconds": None,
            "message": "connection refused",
        },
    ],
    "vms": [
        {"vm": "r-db", "replica": "db", "group": 1, "point": 7, "age_seconds": 13.74},
        {"vm": "r-web", "replica": "web", "group": 2, "point": 3, "age_seconds": None},
    ],
    "reason": "deadline",
    "message": "not done within 1m",
}
PLAN: dict[str, Any] = {
    "name": "shop",
    "spec": {"groups": ["db", "web"]},
    "actions": {"run_generation": 2, "run_mode": "rehearse", "force": False},
    "status": {"phase": "Ready", "ended_generation": 2, "rehearsal": RESULT, "failover": None},
}


def test_a_report_is_of_the_run_that_was_asked_for() -> None:
    report = make_report(PLAN, PLAN)
    assert report is not None and {"rpo_seconds", "rto_seconds", "checks"} <= report.keys()
    assert (report["plan"], report["mode"], "generation" in report) == ("shop", "rehearsal", False)
    assert make_report(PLAN, {"actions": {"run_generation": 3}}) is None


def test_a_report_has_a_row_for_each_check_and_the_figures() -> None:
    lines = render_report(RESULT).splitlines()
    assert lines == [
        "GROUP  VM     POINT  AGE     CHECK    PASSED AFTER",
        "1      r-db   7      13.7 s  running  3.1 s",
        "2      r-web  3      –       tcp 80   not: connection refused",
        "RPO 13.7 s   RTO –   checks 1/2 passed   Failed",
    ]


def test_a_plan_is_described_with_its_last_runs_and_without_what_only_programs_read() -> None:
    assert describe_runs(PLAN, 160.0).startswith("Last rehearsal: Failed 60s ago: not done within 1m\nGROUP")
    kept = leave_out_runs(PLAN)
    assert (kept["spec"], kept["status"]) == ({"groups": ["db", "web"]}, {"phase": "Ready"})
    assert describe_runs({**PLAN, "status": {}}, 0.0) == ""
