"""What a guest says of its first-boot setup, and what is made of that."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from weft.agent.state.allocation import SetUp
from weft.agent.workload.set_up import ASK, GRACE_SECONDS, SetUpWatch, has_set_up, judge
from weft.contracts.clock import SystemClock
from weft.contracts.driver.runtime import ExecChunk, ExecRequest
from weft.objects.errors import Unavailable
from weft.objects.identity import Ref

ERRORS = '{"v1": {"datasource": "NoCloud", "errors": %s}}\n'
SCRIPT = "('scripts_user', RuntimeError('Runparts: 1 failures (part-001) in 1 attempted commands'))"

UNREAD = "Failed loading yaml blob. Invalid format at line 2 column 1"


@pytest.mark.parametrize(
    ("answer", "age", "found"),
    [
        ("", 10_000, SetUp("running")),
        ("begun\n", 10_000, SetUp("running")),
        ("none\n", GRACE_SECONDS - 1, SetUp("running")),
        ("none\n", GRACE_SECONDS, SetUp("failed", "nothing in the guest has carried it out; weft vm restart tries again")),
        ("off\n", 1, SetUp("done")),
        ("script 0\n", 1, SetUp("done")),
        ("script 7\n", 1, SetUp("failed", "its user data ended with exit code 7; see /var/log/user-data.log in it")),
        ("ended\n" + ERRORS % "[]", 1, SetUp("done")),
        ("ended\n" + ERRORS % msgspec.json.encode([SCRIPT]).decode(), 1, SetUp("failed", f"cloud-init: {SCRIPT}")),
        (
            "ended\n" + ERRORS % "[]" + UNREAD + "\n",
            1,
            SetUp("failed", f"cloud-init: its cloud-config can't be read: {UNREAD}"),
        ),
    ],
)  # fmt: skip
def test_what_follows_from_an_answer(answer: str, age: float, found: SetUp) -> None:
    assert judge(answer, age) == found


@pytest.mark.parametrize(
    "answer", ["ended\n", "ended\n{", "ended\n[1]", 'ended\n{"v1": {"errors": 3}}', "script " + "9" * 9000]
)
def test_a_hostile_answer_is_a_failure_of_few_words(answer: str) -> None:
    found = judge(answer, 1)
    assert found.state == "failed" and 0 < len(found.message) <= 300
    assert len(judge("ended\n" + ERRORS % msgspec.json.encode(["x" * 99_999]).decode(), 1).message) <= 300


@pytest.mark.parametrize(
    ("files", "answer"),
    [
        ({}, "none\n"),
        ({"etc/cloud/cloud-init.disabled": ""}, "off\n"),
        ({"run/cloud-init/status.json": "{}"}, "begun\n"),
        ({"run/cloud-init/status.json": "{}", "run/cloud-init/result.json": ERRORS % "[]"}, "ended\n" + ERRORS % "[]"),
        ({"var/lib/weft/seeded-1": ""}, "begun\n"),
        ({"var/lib/weft/seeded-1": "", "var/lib/weft/user-data.code": "3\n"}, "script 3\n"),
        (
            {
                "run/cloud-init/result.json": ERRORS % "[]",
                "var/log/cloud-init.log": "x WARNING: Failed loading yaml blob. Invalid\n",
            },
            "ended\n" + ERRORS % "[]" + "Failed loading yaml blob. Invalid\n",
        ),
    ],
)
def test_the_script_finds_in_a_guest_how_far_it_is(tmp_path: Path, files: dict[str, str], answer: str) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    script = ASK
    for folder in ("run", "var", "etc"):
        script = script.replace(f" /{folder}/", f" {tmp_path}/{folder}/")
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == answer


@pytest.mark.parametrize(
    ("given", "has"), [({}, False), ({"user_data": "#!/bin/sh"}, True), ({"users": ["ann"]}, True)]
)
def test_only_a_vm_that_was_given_something_has_one(given: dict[str, Any], has: bool) -> None:
    empty = {"user_data": "", "users": [], "ssh_keys": []}
    spec: Any = SimpleNamespace(**{**empty, **given})
    assert has_set_up(spec) is has


class Guest:
    """Answers ``answers`` one after the other; None: its agent doesn't answer."""

    def __init__(self, *answers: str | None) -> None:
        self.answers = [*answers]

    async def exec(self, guest_id: str, request: ExecRequest, mark: object = None) -> Guest:
        if self.answers[0] is None:
            self.answers.pop(0)
            raise Unavailable("no answer")
        return self

    async def close_stdin(self) -> None: ...

    async def output(self) -> AsyncIterator[ExecChunk]:
        yield ExecChunk("stdout", cast(str, self.answers.pop(0)).encode())
        yield ExecChunk("exit", code=0)

    async def close(self) -> None: ...


class Fast(SystemClock):
    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)


async def test_a_guest_is_asked_until_its_answer_is_final_and_a_failure_is_an_event() -> None:
    events: list[tuple[str, str]] = []
    local = SimpleNamespace(id="g", spec=SimpleNamespace(workload=Ref("vm", "web", "u", "default")))
    state: Any = SimpleNamespace(set_up=SetUp(), local=local, woken=asyncio.Event())
    state.wake = state.woken.set
    reporter: Any = SimpleNamespace(put_event=lambda ref, type_, reason, text: events.append((reason, text)))
    watch, guest = SetUpWatch(state, Fast(), reporter), Guest(None, "begun\n", None, "script 1\n")
    watch.start("run", guest, 1.0, SetUp())
    assert state.set_up == SetUp("running")
    async with asyncio.timeout(10):
        await state.woken.wait()
    assert state.set_up.state == "failed" and not guest.answers
    assert events == [("SetUpFailed", state.set_up.message)]
    watch.start("another run", guest, 1.0, SetUp("done"))  # as an earlier agent found
    assert state.set_up == SetUp("done")
    watch.stop()
    assert state.set_up == SetUp()
