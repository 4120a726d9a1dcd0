"""Keeps a Mosquitto: writes its files, starts it again whenever it ends, has it read its files when they change."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import pwd
import secrets
import shutil
import signal
import socket
import ssl
from collections.abc import Iterable, Mapping
from pathlib import Path

from weft.contracts.clock import Clock
from weft.edge.broker.config import (
    CONFIG,
    DATA,
    GATEWAY,
    PASSWORDS,
    RIGHTS,
    Bounds,
    Listening,
    hash_password,
    is_of_password,
    write_config,
    write_passwords,
    write_rights,
)
from weft.objects.errors import Unavailable

PROGRAM, PID = "mosquitto", "broker.pid"
LOOK_SECONDS = 1.0
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, WELL_AFTER_SECONDS = 0.2, 5.0, 10.0
END_SECONDS = 10.0
_LINES = 20  # of its complaints that are kept
_PR_SET_PDEATHSIG = 1
_SALT_BYTES = 12
CERTIFICATE, KEY = "certificate.pem", "key.pem"
_MOST_PEM_BYTES = 1 << 20

log = logging.getLogger("weft.edge.broker")


def require_program() -> str:
    """Raises Unavailable where Mosquitto isn't installed."""
    found = shutil.which(PROGRAM) or shutil.which(PROGRAM, path="/usr/sbin:/usr/local/sbin")
    if found is None:
        raise Unavailable("the broker needs the program mosquitto", hint="apt-get install mosquitto")
    return found


class Broker:
    """``folder`` is its own, and made when it is missing. ``password`` is the gateway's, another at each start."""

    def __init__(
        self, folder: Path, listening: Listening, bounds: Bounds, clock: Clock, *, is_open: bool = False
    ) -> None:
        self._folder, self._listening, self._bounds, self._clock = folder, listening, bounds, clock
        self._is_open = is_open
        self._program = require_program()
        self._process: asyncio.subprocess.Process | None = None
        self._devices: set[tuple[str, str]] = set()
        self._hashes: dict[str, str] = {}  # by username, without the gateway's
        self._written: dict[str, str] = {}
        self.password = secrets.token_hex(16)
        self._own_hash = hash_password(self.password, secrets.token_bytes(_SALT_BYTES))
        self.own = self._find_own()
        self.problem = ""
        self.starts = 0

    @property
    def pid(self) -> int:
        """0 while it doesn't run."""
        return self._process.pid if self._process is not None and self._process.returncode is None else 0

    def put_devices(self, devices: Iterable[tuple[str, str]], hashes: Mapping[str, str]) -> None:
        """Let in the devices (project, name) whose usernames have a hash; all others are put out, within a second."""
        self._devices, self._hashes = set(devices), dict(hashes)

    @staticmethod
    def renew_hash(hashed: str, password: str) -> str:
        """The hash of ``password``: ``hashed`` if that is one."""
        if hashed and is_of_password(hashed, password):
            return hashed
        return hash_password(password, secrets.token_bytes(_SALT_BYTES))

    async def keep(self) -> None:
        """Run it until this is cancelled."""
        pause = FIRST_PAUSE_SECONDS
        try:
            while True:
                began = self._clock.elapsed()
                try:
                    await self._end_former()
                    self._write(anew=True)
                    await self._run_once()
                except (OSError, ValueError) as problem:
                    self.problem = f"can't be started: {problem}"
                if self._clock.elapsed() - began > WELL_AFTER_SECONDS:
                    pause = FIRST_PAUSE_SECONDS
                log.warning("the broker %s; it starts again in %g s", self.problem, pause)
                await self._clock.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
        finally:
            await self._end()

    async def _run_once(self) -> None:
        """Start it, and watch its files until it ends; a folder that is gone ends it, too: it has lost what it would keep."""
        process = await asyncio.create_subprocess_exec(
            *(self._program, "-c", str(self._folder / CONFIG)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            preexec_fn=_die_with_parent,
        )
        (self._folder / PID).write_text(str(process.pid))
        self._process, self.problem = process, ""
        self.starts += 1
        complaints: list[str] = []
        reading = asyncio.create_task(self._read_complaints(process, complaints))
        waiting = asyncio.create_task(process.wait())
        gone = False
        try:
            while not waiting.done():
                looking = asyncio.create_task(self._clock.sleep(LOOK_SECONDS))
                await asyncio.wait((waiting, looking), return_when=asyncio.FIRST_COMPLETED)
                looking.cancel()
                if waiting.done():
                    break
                if not (self._folder / CONFIG).exists() or not (self._folder / DATA).exists():
                    gone = True
                    process.kill()
                elif self._write():
                    process.send_signal(signal.SIGHUP)
        finally:
            waiting.cancel()
            reading.cancel()
        words = "; ".join(complaints)[-300:]
        self.problem = (
            "lost its folder" if gone else f"ended with {process.returncode}" + (f": {words}" if words else "")
        )

    async def _read_complaints(self, process: asyncio.subprocess.Process, into: list[str]) -> None:
        assert process.stderr is not None
        while True:
            try:
                line = await process.stderr.readline()
            except ValueError:  # a line longer than the reader holds
                continue
            if not line:
                return
            text = line.decode(errors="replace").strip()[:200]
            into[:] = [*into[-_LINES + 1 :], text]
            log.debug("%s", text)

    def _write(self, *, anew: bool = False) -> bool:
        """Write the files that differ from what was written last, all of them if ``anew``. Returns whether one did."""
        user = _find_user()
        hashes = {**self._hashes, GATEWAY: self._own_hash}
        tls, listening = self._read_pair(anew=anew), self._listening
        if tls:
            names = str(self._folder / CERTIFICATE), str(self._folder / KEY)
            listening = Listening(listening.address, listening.port, *names)
        files = {
            **tls,
            CONFIG: write_config(self._folder, listening, self.own, self._bounds, user.pw_name, is_open=self._is_open),
            PASSWORDS: write_passwords(hashes),
            RIGHTS: write_rights(self._devices, is_open=self._is_open),
        }
        changed = {name: text for name, text in files.items() if anew or self._written.get(name) != text}
        if anew:
            data = self._folder / DATA
            data.mkdir(parents=True, exist_ok=True)
            self._folder.chmod(0o711)
            for path in (self._folder, *self._folder.parents):
                if user.pw_uid != 0 and not path.stat().st_mode & 0o001:
                    raise PermissionError(
                        f"{path} isn't open to user {user.pw_name}: chmod o+x {path}, or give another state"
                    )
            for path in (data, *data.iterdir()):
                os.chown(path, user.pw_uid, user.pw_gid)
            data.chmod(0o700)
        for name, text in changed.items():
            self._write_one(name, text, user)
        self._written = files
        return bool(changed)

    def _read_pair(self, *, anew: bool) -> dict[str, str]:
        """Certificate and key, for copies that the broker's user may read: their own files are for root alone, as keys should be.
        While they are renewed, and don't belong together yet, the former ones; {} without TLS. Raises OSError if ``anew``."""
        given = self._listening
        if not given.certificate:
            return {}
        before = {name: self._written[name] for name in (CERTIFICATE, KEY) if name in self._written}
        try:
            pair = {CERTIFICATE: _read_pem(given.certificate), KEY: _read_pem(given.key)}
            if pair != before:
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(given.certificate, given.key, password=bytes)
        except (OSError, ValueError):
            if before and not anew:
                return before
            raise
        return pair

    def _write_one(self, name: str, text: str, user: pwd.struct_passwd) -> None:
        fresh = self._folder / f".{name}.new"
        fresh.unlink(missing_ok=True)
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
            os.fchown(out.fileno(), user.pw_uid, user.pw_gid)  # it reads them again after it has given up being root
            out.write(text)
        fresh.replace(self._folder / name)

    def _find_own(self) -> Listening:
        """Where the gateway connects: the devices' listener if it is plain and on loopback, else a free port of loopback."""
        given = self._listening
        if not given.certificate and given.address in ("127.0.0.1", "::1"):
            return given
        with socket.create_server(("127.0.0.1", 0)) as probe:
            return Listening("127.0.0.1", int(probe.getsockname()[1]))

    async def _end_former(self) -> None:
        """End the broker of a gateway that was killed: it has that gateway's password, and the port. (That it becomes another user
        takes from it the signal at its parent's end.)"""
        try:
            pid = int((self._folder / PID).read_text())
        except (OSError, ValueError):
            return
        until = self._clock.elapsed() + END_SECONDS
        ends = signal.SIGTERM
        while str(self._folder / CONFIG).encode() in _read_words(pid):
            if self._clock.elapsed() > until:
                ends = signal.SIGKILL
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, ends)
            await self._clock.sleep(FIRST_PAUSE_SECONDS)
        (self._folder / PID).unlink(missing_ok=True)

    async def _end(self) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(END_SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


def _find_user() -> pwd.struct_passwd:
    """Whose the broker's files are: the package's user; this process's own where that isn't root."""
    if os.geteuid() == 0:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(PROGRAM)
    return pwd.getpwuid(os.geteuid())


def _read_pem(path: str) -> str:
    """Raises OSError, ValueError."""
    with open(path, "rb") as file:
        text = file.read(_MOST_PEM_BYTES + 1)
    if len(text) > _MOST_PEM_BYTES:
        raise ValueError(f"{path} is larger than {_MOST_PEM_BYTES >> 20} MiB")
    return text.decode()


def _read_words(pid: int) -> list[bytes]:
    """The command line of a process; empty if there is none, or it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def _die_with_parent() -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
