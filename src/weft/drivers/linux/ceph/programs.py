"""Asks a Ceph cluster with its own programs, as one user, within a time each."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from typing import Any

from weft.drivers.linux.programs import run_program
from weft.objects.errors import DriverFailed, NotFound

PACKAGES = "ceph-common"
ANSWER_SECONDS = 15  # of the monitors: a cluster that doesn't answer is an error, not a wait
COMMAND_SECONDS = 60.0
_NOT_FOUND = 2  # ENOENT, as Ceph's programs exit


class CephClient:
    """A client that runs Ceph's programs. ``where`` names the storage pool and its node, for people."""

    def __init__(self, conf: str, user: str, where: str) -> None:
        self.conf, self.user, self._where = conf, user, where

    def words(self, program: str) -> list[str]:
        seconds = f"--client_mount_timeout={ANSWER_SECONDS}"
        return [program, "-c", self.conf, "--id", self.user, seconds, f"--rados_mon_op_timeout={ANSWER_SECONDS}"]

    async def run(self, program: str, *words: str, seconds: float = COMMAND_SECONDS, stdin: str = "") -> str:
        """Its output. Raises NotFound where Ceph has no such thing, DriverFailed (``noSpace``)."""
        what = " ".join([program, *words[:2]])
        argv = [*self.words(program), *words]
        done = await run_program(argv, what, PACKAGES, seconds=seconds, stdin=stdin)
        return self._check(what, done.code, done.output, done.errors)

    def ask_now(self, program: str, *words: str, seconds: float = COMMAND_SECONDS) -> Any:
        """The answer as JSON; blocks. Raises as ``run``."""
        what, argv = " ".join([program, *words[:2]]), [*self.words(program), *words, "--format", "json"]
        try:
            done = subprocess.run(argv, capture_output=True, text=True, timeout=seconds, check=False)
        except FileNotFoundError as problem:
            raise DriverFailed(
                f"{self._where}: {program} is not installed", hint=f"apt-get install {PACKAGES}"
            ) from problem
        except subprocess.TimeoutExpired as problem:
            raise DriverFailed(f"{self._where}: {what} got no answer within {seconds:g} s") from problem
        return self._read(what, self._check(what, done.returncode, done.stdout, done.stderr))

    async def ask(self, program: str, *words: str) -> Any:
        """The answer as JSON. Raises as ``run``."""
        return self._read(" ".join([program, *words[:2]]), await self.run(program, *words, "--format", "json"))

    def _check(self, what: str, code: int, output: str, errors: str) -> str:
        if code == 0:
            return output
        said = _last_words(errors.splitlines() or output.splitlines())
        problem = f"{self._where}: {what} failed: {said or f'exit code {code}'}"
        if code == _NOT_FOUND or "(2) No such file" in errors:  # rados exits with 1 for everything
            raise NotFound(problem)
        full = "No space left" in errors or "(28)" in errors or "Disk quota exceeded" in errors
        hint = None
        if "timed out" in errors.lower() or "error connecting" in errors:
            hint = "does the Ceph cluster run, and is it reached from this node? ceph -s tells"
        raise DriverFailed(problem, reason="noSpace" if full else None, hint=hint, details={"step": "disk"})

    def _read(self, what: str, output: str) -> Any:
        try:
            return json.loads(output)
        except ValueError as problem:
            raise DriverFailed(
                f"{self._where}: {what} answered something else than JSON: {output[:100]!r}"
            ) from problem


def _last_words(lines: Sequence[str]) -> str:
    """Its last messages, without Ceph's time stamps and threads before them."""
    told = [line.split(" -1 ", 1)[-1].strip() for line in lines if line.strip()]
    return " ".join(told[-2:])[-400:]
