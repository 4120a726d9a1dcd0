"""Lines for requests are written together; nothing that matters waits."""

from __future__ import annotations

import logging
import re

import pytest

from weft.launch.process.log import GatheringHandler


@pytest.fixture
def log() -> logging.Logger:
    made = logging.Logger("weft.api", logging.INFO)
    made.addHandler(GatheringHandler())
    return made


def test_lines_wait_until_they_are_written_together(log: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    log.info("PUT %s", "/one")
    log.info("PUT %s", "/two")
    assert capsys.readouterr().err == ""
    log.handlers[0].flush()
    said = capsys.readouterr().err.splitlines()
    assert [re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ", "", line) for line in said] == [
        "weft.api INFO PUT /one",
        "weft.api INFO PUT /two",
    ]


def test_a_warning_brings_what_waited_at_once_and_a_defect_its_traceback(
    log: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    log.info("before")
    try:
        raise KeyError("broken")
    except KeyError:
        log.exception("a defect")
    said = capsys.readouterr().err
    assert said.index("before") < said.index("ERROR a defect") < said.index("KeyError: 'broken'")


def test_very_many_lines_do_not_wait(log: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(1500):
        log.info("line %d", number)
    assert capsys.readouterr().err.count("\n") == 1000
