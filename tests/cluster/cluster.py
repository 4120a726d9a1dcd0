"""A real cluster in a folder of its own, driven as a person would: through the command line."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import pytest

from tests.commands import WEFT, run_command
from tests.logs import CONTENT
from weft.client import Client
from weft.client.context import find_context

ROOT = Path(__file__).resolve().parents[2]
SERVER_OPTIONS = "--resume-elsewhere-after 12s"  # a minute in which tests wait otherwise
OFTEN = (
    "--metrics-interval 2s --alert-interval 2s"  # where they wait for values and alerts, else ten seconds: it costs CPU
)


def until(holds: Callable[[], object], seconds: float = 180) -> None:
    """Return once it holds; fails if it doesn't in that time."""
    began = time.monotonic()
    while not holds():
        waited = time.monotonic() - began
        assert waited < seconds, "it never came"
        time.sleep(
            min(max(0.3, waited / 8), 1.5)
        )  # each look may be a program of its own, so what takes long is looked at less often


def lay_out(folder: Path, *, often: bool = False) -> Cluster:
    """A folder as a clone would be, sharing this clone's cache of built images. ``often``: its server gathers and judges values
    every two seconds."""
    cache = ROOT / ".weft" / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    (folder / ".weft").mkdir()
    (folder / ".weft" / "cache").symlink_to(cache)
    shutil.copytree(ROOT / "examples", folder / "examples")
    return Cluster(folder, f"{SERVER_OPTIONS} {OFTEN}" if often else SERVER_OPTIONS)


@contextmanager
def own_cluster(folder: Path, **variables: str) -> Iterator[Cluster]:
    """A cluster of a test's own, with variables of ``make up``."""
    if os.geteuid() != 0 or shutil.which("qemu-system-x86_64") is None or shutil.which("etcd") is None:
        pytest.skip("needs root, QEMU and etcd")
    made = lay_out(folder)
    try:
        made.up(**variables)
        yield made
    finally:
        made.down()
        assert not (made.state / "server").exists() and not (made.state / "servers").exists()


def read_parent(pid: int) -> int:
    """0: it has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


class Cluster:
    """A folder with a cluster in it, driven as a person would: through the command line."""

    def __init__(self, folder: Path, server_options: str = SERVER_OPTIONS) -> None:
        self.folder, self.server_options = folder, server_options
        self.state = folder / ".weft"

    def run(self, *argv: str, stdin: bytes | None = None, timeout: float = 120) -> subprocess.CompletedProcess[bytes]:
        return run_command(*argv, cwd=self.folder, stdin=stdin, timeout=timeout)

    def ok(self, *argv: str, stdin: bytes | None = None, timeout: float = 120) -> str:
        done = self.run(*argv, stdin=stdin, timeout=timeout)
        assert done.returncode == 0, (
            f"weft {' '.join(argv)} → {done.returncode}\n{done.stdout.decode()}\n{done.stderr.decode()}"
        )
        return done.stdout.decode()

    def make_folder(self, name: str) -> Path:
        """A new folder that the cluster's processes may read; one of that name may be there from the test's first try."""
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder))
        folder.chmod(0o755)
        return folder

    def json(self, *argv: str) -> Any:
        return json.loads(self.ok(*argv, "-o", "json"))

    def object(self, kind: str, name: str) -> dict[str, Any]:
        """It as ``weft get`` prints it, by this process's own client: tests look often, and a program each time takes their CPU."""
        client = Client(find_context(folder=str(self.folder), environ={}))
        try:
            return dict(client.get(kind, name))
        finally:
            client.close()

    def vm(self, name: str) -> dict[str, Any]:
        return self.object("vm", name)

    def fails(self, code: int, *argv: str, stdin: bytes | None = None, timeout: float = 60) -> str:
        done = self.run(*argv, stdin=stdin, timeout=timeout)
        assert done.returncode == code, f"weft {' '.join(argv)} → {done.returncode}, not {code}\n{done.stderr.decode()}"
        return done.stderr.decode()

    @contextmanager
    def following(self, *argv: str, say: Callable[[str], object]) -> Iterator[SimpleQueue[bytes]]:
        """The lines that ``weft … logs`` prints of what comes after this: that it follows is known by what ``say`` has written."""
        words = [WEFT, *argv, "-f", "--tail", "0"]
        with subprocess.Popen(words, cwd=self.folder, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            lines: SimpleQueue[bytes] = SimpleQueue()
            reading = threading.Thread(target=lambda out: [lines.put(line) for line in out], args=(process.stdout,))
            reading.start()
            try:
                said = 0
                say("does it follow? 0")
                while True:
                    try:
                        if lines.get(timeout=0.3).strip() == f"does it follow? {said}".encode():
                            break
                    except Empty:
                        said += 1
                        assert said < 100 and process.poll() is None
                        say(f"does it follow? {said}")
                yield lines
            finally:
                process.terminate()
                reading.join(10)

    @property
    def host_address(self) -> str:
        """Where nodes reach this machine."""
        underlay = json.loads((self.state / "cluster.json").read_text())["underlay"]
        return underlay.rpartition(".")[0] + ".1"

    def local(
        self, verb: str, timeout: float = 300, store: str = "", ceph: str = "", clusters: str = "", servers: str = ""
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "weft.launch.local", verb],
            cwd=self.folder,
            env={
                **os.environ,
                "STORE": store,
                "CEPH": ceph,
                "CLUSTERS": clusters,
                "SERVERS": servers,
                "SERVER_OPTIONS": self.server_options,
            },
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def up(self, store: str = "", ceph: str = "", servers: str = "") -> None:
        done = self.local("up", store=store, ceph=ceph, servers=servers)
        assert done.returncode == 0, done.stdout + done.stderr + self.logs()

    def down(self) -> None:
        done = self.local("down")
        assert done.returncode == 0, done.stdout + done.stderr

    def logs(self) -> str:
        return "\n".join(
            f"== {p}\n{p.read_text(errors='replace')[-3000:]}" for p in sorted(self.state.glob("log/*.log"))
        )

    def pids(self, *words: str) -> list[int]:
        """Processes of this cluster whose command line has all ``words``, as seen from the host."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if (str(self.state) in line or self.run_mark() in line) and all(word in line for word in words):
                found.append(int(entry.name))
        return found

    def pid(self, *words: str) -> int:
        """The one process that ``pids`` finds; not a child of it that was forked a moment ago: that will be another program,
        or has ended since."""
        found = self.pids(*words)
        (pid,) = [each for each in found if read_parent(each) not in (0, *found)]
        return pid

    @property
    def log_folders(self) -> list[Path]:
        run = Path(f"/run/weft-{self.run_mark()}")
        return [self.state / "server", self.state / "nodes", self.state / "log", run]

    def appended(self) -> list[tuple[str, int]]:
        """The files that the cluster's processes have open to append to, and whatever is called a log, as files.md names them:
        by what they lie in, and their sizes."""
        run = Path(f"/run/weft-{self.run_mark()}")
        places = [(self.state / "server", "SERVER"), (self.state, "CLONE")]
        for node in sorted((self.state / "nodes").iterdir()):
            places = [(node, "AGENT"), (run / node.name, "RUN"), *places]
        found: dict[Path, int] = {}
        for top in self.log_folders:
            for path in top.rglob("*.log*"):
                if path.is_file() and not CONTENT & set(path.parts):
                    found[path] = path.stat().st_size
        for pid in self.pids():
            for link in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(OSError):
                    flags = int((Path(f"/proc/{pid}/fdinfo") / link.name).read_text().split("flags:")[1].split()[0], 8)
                    path = Path(os.readlink(link))
                    if flags & os.O_APPEND and path.is_file():
                        found[path] = path.stat().st_size
        named = []
        for path, size in found.items():
            for top, word in places:
                if path.is_relative_to(top):
                    named.append((f"{word}/{path.relative_to(top)}", size))
                    break
        return named

    @staticmethod
    def free_port() -> int:
        """A port nothing listens on: another cluster may stand on this machine with ports of its own."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            return int(server.getsockname()[1])

    def run_mark(self) -> str:
        return json.loads((self.state / "cluster.json").read_text())["id"]
