"""Boots one machine of each kind that guests of this test run asked for, and saves it where it waits: ``barrier.c``.

``python -m tests.warm.snapshots FOLDER``: until its standard input ends. ``FOLDER/wanted`` holds notes of ``start.py``,
``FOLDER/saved`` the states, ``FOLDER/bin`` what goes onto the PATH.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.warm.start import FILE, QEMU, changes
from weft.images.parts import compile_program, pack_cpio

HERE = Path(__file__).parent
BOOT_SECONDS = 120.0
SAID, WRONG = b"warm: waits", b"warm: the timer is wrong"  # by barrier.c
BOOTS = 4  # of one kind, until its timer is right


class Unfit(Exception):
    """A machine booted, but none should go on from it."""


def lay_out(folder: Path) -> None:
    """``folder``, which anyone may enter, with the program that stands in QEMU's place."""
    for name, mode in (("bin", 0o755), ("saved", 0o755), ("wanted", 0o1777)):
        (folder / name).mkdir()
        (folder / name).chmod(mode)
    program = folder / "bin" / Path(QEMU).name
    shutil.copy(HERE / "start.py", program)
    program.chmod(0o755)
    folder.chmod(0o755)


class SnapshotMaker:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.barrier = compile_program(HERE / "barrier.c", folder / "barrier").read_bytes()

    def work(self) -> None:
        """Until standard input ends: whoever started this one has ended."""
        done: set[str] = set()
        while not select.select([sys.stdin], [], [], 0.2)[0]:
            for note in sorted((self.folder / "wanted").iterdir()):
                if note.name in done or note.suffix:
                    continue
                try:
                    wanted = json.loads(note.read_bytes())
                except ValueError:
                    continue  # it is being written
                done.add(note.name)
                try:
                    self.save_fit(note.name, wanted)
                except Exception as problem:
                    (self.folder / "failed").mkdir(exist_ok=True)
                    (self.folder / "failed" / note.name).write_text(f"{problem!r}\n{json.dumps(wanted, indent=1)}")

    def save_fit(self, key: str, wanted: dict[str, Any]) -> None:
        for _ in range(BOOTS - 1):
            with contextlib.suppress(Unfit):
                return self.save(key, wanted)
        return self.save(key, wanted)

    def save(self, key: str, wanted: dict[str, Any]) -> None:
        """Raises Unfit."""
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            place = Path(name)
            kernel, initrd = (open_again(wanted["root"], path) for path in wanted["files"])
            (place / "kernel").write_bytes(kernel)
            entries = [("warm-barrier", 0o100755, self.barrier)]
            (place / "initrd").write_bytes(initrd + bytes(-len(initrd) % 512) + pack_cpio(entries))
            words = list(wanted["words"])
            at = words.index("null,id=console")
            words[at] = f"file,id=console,path={place}/console"
            command = [QEMU, *words, "-kernel", f"{place}/kernel", "-initrd", f"{place}/initrd"]
            command += ["-append", wanted["line"] + " rdinit=/warm-barrier", "-fw_cfg", f"name={FILE},string=wait"]
            command += ["-qmp", f"unix:{place}/monitor,server=on,wait=off"]
            with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as machine:
                try:
                    self._save(machine, wanted, place, self.folder / "saved" / key)
                except Unfit:
                    raise
                except Exception as problem:
                    machine.kill()
                    assert machine.stderr is not None
                    raise RuntimeError(machine.stderr.read().decode()[-2000:]) from problem
                finally:
                    machine.kill()

    def _save(self, machine: subprocess.Popen[bytes], wanted: dict[str, Any], place: Path, saved: Path) -> None:
        deadline = time.monotonic() + BOOT_SECONDS
        while True:
            with contextlib.suppress(FileNotFoundError):
                said = (place / "console").read_bytes()
                if WRONG in said:
                    raise Unfit("its timer was measured on a busy machine, and is wrong")
                if SAID in said:
                    break
            if machine.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("it never came")
            time.sleep(0.05)
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(f"{place}/monitor")
            stream = line.makefile("rwb")
            stream.readline()

            def ask(command: str, **arguments: object) -> Any:
                stream.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
                stream.flush()
                while True:
                    answer = json.loads(stream.readline())
                    if "error" in answer:
                        raise RuntimeError(answer["error"]["desc"])
                    if "return" in answer:
                        return answer["return"]

            ask("qmp_capabilities")
            # It isn't stopped before: the state says whether it ran, and so whether what goes on from it does.
            ask("migrate-set-parameters", **{"max-bandwidth": 1 << 40, "downtime-limit": 10_000})
            ask("migrate", uri=f"file:{place}/state")
            while (status := ask("query-migrate")["status"]) != "completed":
                if status in ("failed", "cancelled"):
                    raise RuntimeError(f"saving {status}")
                time.sleep(0.02)
            ask("quit")
        state = (place / "state").read_bytes()
        places = [
            [found.start() for found in re.finditer(re.escape(old), state)]
            for old in changes(wanted["words"], wanted["line"])
        ]
        saved.with_name(f"{saved.name}.places").write_text(json.dumps(places))
        (place / "state").chmod(0o644)
        os.replace(place / "state", saved)


def open_again(root: str, path: str) -> bytes:
    """The file as whoever named it saw it: it may have mounts of its own."""
    for seen in (root + path, path):
        with contextlib.suppress(OSError):
            return Path(seen).read_bytes()
    raise FileNotFoundError(path)


if __name__ == "__main__":
    os.nice(-10)  # a guest that boots because this one came late costs the processors of the others more
    SnapshotMaker(Path(sys.argv[1])).work()
