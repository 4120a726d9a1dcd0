"""A test that fails is run once more, from a clean start, and both are named at the end: see decision 0160.

All that its file shares (labs, guests, functions) is made again for the second try; what the whole run shares (clusters) is put
right by ``tests/cluster/sweep.py``.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from _pytest.runner import runtestprotocol

MOST = 3  # tests of a whole run that may fail once
KEPT = Path(__file__).parents[1] / ".weft" / "ran-again.txt"  # of all runs in this clone: when, which, why


class Above:
    """Stands for a next test of another file: nothing that is shared in one file lives on until then."""

    def __init__(self, item: pytest.Item) -> None:
        self._above = [node for node in item.listchain() if isinstance(node, pytest.Session | pytest.Dir)]

    def listchain(self) -> list[Any]:
        return self._above


class Again:
    """The plugin: ``tries`` is how often a test may be run in all."""

    def __init__(self, tries: int) -> None:
        self._tries = tries
        self.first: list[pytest.TestReport] = []  # of each test that was run again: how it failed

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool:
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for number in range(self._tries):
            reports = runtestprotocol(item, nextitem=nextitem, log=False)
            last = number + 1 == self._tries or item.session.shouldstop or not any(one.failed for one in reports)
            for report in reports:
                if last or report.failed:
                    report.outcome = report.outcome if last else "rerun"  # type: ignore[assignment]
                    item.ihook.pytest_runtest_logreport(report=report)
            if last:
                break
            try:
                item.session._setupstate.teardown_exact(Above(item))  # type: ignore[arg-type]
            except Exception as problem:
                print(f"what the file shares could not be removed: {problem!r}")
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def pytest_report_teststatus(self, report: pytest.CollectReport | pytest.TestReport) -> Any:
        return ("run again", "R", ("RUN AGAIN", {"yellow": True})) if report.outcome == "rerun" else None  # type: ignore[comparison-overlap]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.outcome == "rerun":  # type: ignore[comparison-overlap]
            self.first.append(report)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Many that fail once are a defect."""
        if hasattr(session.config, "workerinput"):
            return
        if len(self.names()) > MOST and session.exitstatus == 0:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """How each failed, then their names with the reason in one line; of those that have done so before, since when."""
        if not self.first or hasattr(terminalreporter.config, "workerinput"):
            return
        write = terminalreporter.write_line
        terminalreporter.section("how the tests failed that were run again")
        for report in self.first:
            write(f"{report.nodeid} ({report.when})", bold=True)
            write(report.longreprtext)
            for title, text in report.sections:
                write(f"{title}:\n{text}" if len(text) < 2000 else f"{title}, the end:\n{text[-2000:]}")
        before = self._keep()
        terminalreporter.section(f"failed once and were run again: {len(self.names())} (at most {MOST} may)")
        for name, reason in self.names().items():
            write(f"{name}  {reason}", bold=True)
            for line in before.get(name, [])[-3:]:
                write(f"    before: {line}  ← mend it")

    def names(self) -> dict[str, str]:
        """Each test that was run again, with the first line of its failure."""
        return {report.nodeid: say_briefly(report) for report in self.first}

    def _keep(self) -> dict[str, list[str]]:
        """Write them down; the earlier lines of each."""
        lines = KEPT.read_text().splitlines() if KEPT.exists() else []
        before = {name: [line for line in lines if f" {name} " in line] for name in self.names()}
        KEPT.parent.mkdir(exist_ok=True)
        today = time.strftime("%Y-%m-%d %H:%M")
        with KEPT.open("a") as file:
            file.writelines(f"{today} {name} {reason}\n" for name, reason in self.names().items())
        return before


def say_briefly(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    said = crash.message if crash is not None else report.longreprtext.strip().rpartition("\n")[2]
    return f"{said.partition(chr(10))[0][:160]} ({report.when})"
