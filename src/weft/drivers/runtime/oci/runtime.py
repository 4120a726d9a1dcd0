"""crun or runc as a program: its command lines, and what its errors mean. Both have the same commands."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import msgspec

from weft.contracts.driver.container import NOT_EXECUTABLE, NOT_FOUND
from weft.drivers.runtime.oci.mount_namespace import Finished, run_in_mount_namespace
from weft.objects.errors import DriverFailed

PROGRAMS = ("crun", "runc")
ANSWER_SECONDS = 30.0
HAS_ENDED = b"the container has ended"
_RUNC_MESSAGE = re.compile(r'level=error msg="((?:[^"\\]|\\.)*)"')

# How they print an error of ``exec``, among a command's own output: crun on a terminal, runc without one, and on one.
_EXEC_REFUSED = re.compile(
    rb"\x1b\[1;31m[\dT:.-]+Z: (?P<crun>[^\x1b\r\n]*)\x1b\[0m"
    rb'|time="[^"\n]*" level=error msg="exec failed: (?P<quoted>(?:[^"\\\n]|\\.)*)"'
    rb"|\x1b\[31mERRO\x1b\[0m\[\d+\] exec failed: (?P<runc>[^\x1b\r\n]*?) *(?=\r|\n|$)"
)
_STOPPED = re.compile(
    rb"(?:the )?container `[^`\n]*` is not running|error opening file `[^`\n]*/status`: No such file or directory"
    rb"|cannot exec in a stopped container|container does not exist|container not running"
)
# crun's words, then runc's.
_NEVER_BEGAN = {
    NOT_FOUND: re.compile(
        r"executable file `.*` not found in \$PATH|open executable: (No such file|Not a directory|File name too long)"
        r'|exec: ".*": (executable file not found in \$PATH|stat .*: (no such file|not a directory|file name too long))',
        re.DOTALL,
    ),
    NOT_EXECUTABLE: re.compile(
        r'open executable: (Permission denied|Operation not permitted)|exec: ".*": (permission denied|is a directory)',
        re.DOTALL,
    ),
}


class Runtime(msgspec.Struct, frozen=True):
    """``root`` is where it keeps its own notes of containers; ``hidden`` are mounts that it must not see."""

    program: str
    root: Path
    hidden: list[str] = []

    @property
    def name(self) -> str:
        return Path(self.program).name

    @property
    def own_options(self) -> list[str]:
        return ["--cgroup-manager=cgroupfs"] if self.name == "crun" else []

    @property
    def options(self) -> list[str]:
        return [f"--root={self.root}", *self.own_options]

    def words(self, *words: str) -> list[str]:
        return [self.program, *self.options, *words]

    async def run(self, *words: str, given: bytes = b"") -> Finished:
        return await run_in_mount_namespace(
            self.words(*words), self.hidden, timeout_seconds=ANSWER_SECONDS, given=given
        )

    async def status(self, container_id: str) -> str:
        """created, running, stopped, …; empty for one that it doesn't know."""
        done = await self.run("state", container_id)
        try:
            return str(msgspec.json.decode(done.out)["status"]) if done.status == 0 else ""
        except (msgspec.DecodeError, KeyError, TypeError):
            return ""

    async def delete(self, container_id: str) -> None:
        """Kill what is left of it, and forget it; an unknown one is fine."""
        if (self.root / container_id).exists():
            await self.run("delete", "--force", container_id)
        shutil.rmtree(self.root / container_id, ignore_errors=True)  # of one that it was killed over

    async def update(self, container_id: str, resources: dict[str, Any]) -> None:
        """Raises DriverFailed with its words."""
        done = await self.run("update", "--resources=-", container_id, given=msgspec.json.encode(resources))
        if done.status != 0:
            raise DriverFailed(f"{self.name}: {read_error(done.err)}", details={"step": "update"})


def read_error(text: str) -> str:
    """Pure. The last error in the runtime's output; runc wraps it as a log line."""
    found = _RUNC_MESSAGE.findall(text)
    if found:
        return str(found[-1]).replace('\\"', '"').replace("\\\\", "\\")
    lines = [line for line in text.splitlines() if line.strip()]
    return re.sub(r"^\S+Z: ", "", lines[-1]).strip() if lines else "it printed no error"


def shorten_refusal(output: bytes) -> bytes:
    """``output`` of an ``exec`` that didn't begin, reduced to the words of the runtime. Times, levels, colours and the id of a
    container that has ended are left out."""

    def shorten(found: re.Match[bytes]) -> bytes:
        words = found["crun"] or found["runc"] or re.sub(rb"\\(.)", rb"\1", found["quoted"] or b"")
        return words.removeprefix(b"unable to start container process: ")

    return _STOPPED.sub(HAS_ENDED, _EXEC_REFUSED.sub(shorten, output))


def read_never_began(words: str) -> str | None:
    """Pure. Which of NEVER_BEGAN an error of crun or runc means, even as containerd reports it; None for any other."""
    return next((reason for reason, pattern in _NEVER_BEGAN.items() if pattern.search(words)), None)


def find_programs(wanted: str | None) -> list[str]:
    """Paths of the runtimes that are installed, the one to prefer first."""
    names = [wanted] if wanted else PROGRAMS
    return [path for name in names if (path := shutil.which(name)) is not None]
