"""A sentence that says of a file that it is the only one of its sort is held by a search, or isn't written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest
from source import FILES, ROOT, SOURCE, text_of

SAID = re.compile(
    r"\bthe (?:only|one) (?:file|module|folder|place|room)s? (?:that|which|where)\b"
    r"|\bonly this (?:file|module|folder|room) \w+s\b"
)


class Claim(NamedTuple):
    page: str
    words: str
    only: str  # a regular expression for what the claim is about
    files: tuple[str, ...]  # below src/weft, all that have it
    below: str = ""


DRIVERS = r'"weft\.drivers\.(?:runtime|network|volume)\.\w+\.driver:'
CLAIMS = [
    Claim(
        "docs/decisions/0001-ip-and-nft-as-programs.md",
        "the only file that starts programs",
        r"\brun_program\b|\bsubprocess\b",
        ("drivers/network/bridge/kernel.py",),
        below="drivers/network",
    ),
    Claim(
        "docs/decisions/0014-the-newest-decision-is-an-object.md",
        "the only file that makes one",
        r"\bDECISION\.make\(|(?<!class )\bDecisionSpec\(",
        ("scheduler/allocation/bind.py",),
    ),
    Claim(
        "docs/decisions/0143-a-class-is-a-name-for-a-number.md",
        "the only place that makes a number of a class",
        r"(?<!class )\bPriorityClassSpec\b(?!\.|,)",
        ("api/admission/priority.py",),
        below="api",
    ),
    Claim(
        "docs/decisions/0328-run-times-are-kept-in-an-accounting-record.md",
        "the only file that reads and writes it",
        r"AccountingStatus\)\.run_times|\bAccountingStatus\([^)]*\brun_times=",
        ("scheduler/queue/learned.py",),
    ),
    Claim("docs/recipes/add-a-driver.md", "the only place that names it", DRIVERS, ("launch/agent/drivers.py",)),
    Claim("src/weft/launch/agent/drivers.py", "only this file names", DRIVERS, ("launch/agent/drivers.py",)),
    Claim(
        "src/weft/api/audit/recorder.py",
        "the one place where they are made",
        r"(?<!class )\bAuditRecord\(",
        ("api/audit/recorder.py", "telemetry/audit/log.py"),  # the log's own notes aren't of a request
    ),
    Claim(
        "src/weft/api/request/problem.py",
        "the one place where reasons become status codes",
        r'"(?:staleRevision|alreadyExists|quotaExceeded)": \d{3}',
        ("api/request/problem.py",),
    ),
]


def find_said(text: str) -> list[str]:
    return SAID.findall(re.sub(r"\s+", " ", text))


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: f"{Path(claim.page).stem[:30]}: {claim.words[:40]}")
def test_what_is_said_to_be_in_one_file_is_in_no_other(claim: Claim) -> None:
    only = re.compile(claim.only)
    names = {path.relative_to(SOURCE).as_posix(): path for path in FILES}
    found = [name for name, path in names.items() if name.startswith(claim.below) and only.search(text_of(path))]
    assert found == sorted(claim.files)
    assert claim.words in re.sub(r"\s+", " ", (ROOT / claim.page).read_text())


def test_each_sentence_that_says_the_only_file_is_held_by_a_search() -> None:
    pages = [*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md"), *FILES]
    said = {page.relative_to(ROOT).as_posix(): find_said(page.read_text()) for page in pages}
    held = [claim.page for claim in CLAIMS]
    assert {page: words for page, words in said.items() if len(words) > held.count(page)} == {}


def test_the_sentence_is_found_over_two_lines() -> None:
    assert find_said("`a.py` is the only\nfile that knows it; only this module opens it") == [
        "the only file that",
        "only this module opens",
    ]
