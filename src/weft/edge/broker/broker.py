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
import stat
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
        self._written: dict[str, bytes] = {}
        self._pair_problem = ""
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
                    await self._end()
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
        self._process, self.problem = process, self._pair_problem
        self.starts += 1
        noted = self._note(process.pid)
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
                    continue
                noted = noted or self._note(process.pid)
                if self._renew(noted):
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

    def _note(self, pid: int) -> bool:
        """Write down, for a gateway that comes after a killed one, which process it is. Returns whether that could be done."""
        try:
            (self._folder / PID).write_text(str(pid))
        except OSError:
            return False
        return True

    def _renew(self, noted: bool) -> bool:
        """Write what has changed, while it runs: what can't be written now (the disk is full) is tried again at the next look, and
        the broker runs on with what it has. Returns whether something was written."""
        problem, changed = "" if noted else f"runs, but {self._folder / PID} can't be written", False
        try:
            changed = self._write()
        except OSError as error:
            problem = f"runs on with its former files, new ones can't be written: {error}"
        if problem and problem != self.problem:
            log.warning("the broker %s", problem)
        self.problem = problem or self._pair_problem
        return changed

    def _write(self, *, anew: bool = False) -> bool:
        """Write the files that differ from what was written last; if ``anew``, from what lies in the folder. All of them
        are written, or all stay as they were. Returns whether one was. Raises OSError; ValueError if ``anew``."""
        user = _find_user()
        hashes = {**self._hashes, GATEWAY: self._own_hash}
        tls, listening = self._read_pair(), self._listening
        if tls:
            names = str(self._folder / CERTIFICATE), str(self._folder / KEY)
            listening = Listening(listening.address, listening.port, *names)
        config = write_config(self._folder, listening, self.own, self._bounds, user.pw_name, is_open=self._is_open)
        files = {
            **tls,
            CONFIG: config.encode(),
            PASSWORDS: write_passwords(hashes).encode(),
            RIGHTS: write_rights(self._devices, is_open=self._is_open).encode(),
        }
        if anew:
            data = self._folder / DATA
            data.mkdir(parents=True, exist_ok=True)
            self._folder.chmod(0o711)
            for path in (self._folder, *self._folder.parents):
                if user.pw_uid != 0 and not path.stat().st_mode & 0o001:
                    raise PermissionError(
                        f"{path} isn't open to user {user.pw_name}: chmod o+x {path}, or give another state"
                    )
            _give(data, user)
            if not tls:  # it was taken out: its key shall not stay behind
                for name in (CERTIFICATE, KEY):
                    (self._folder / name).unlink(missing_ok=True)
                    self._name_fresh(name).unlink(missing_ok=True)
            changed = {name: text for name, text in files.items() if not _is_there(self._folder / name, text, user)}
        else:
            changed = {name: text for name, text in files.items() if self._written.get(name) != text}
        self._write_all(changed, user)
        self._written = files
        return bool(changed)

    def _read_pair(self) -> dict[str, bytes]:
        """Certificate and key, for copies that the broker's user may read: their own files are for root alone, as keys should be.
        While those can't be used, as halfway through a renewal, the former ones, which an earlier run may have left in the folder.
        {} without TLS. Raises OSError, ValueError if there are no former ones."""
        given = self._listening
        if not given.certificate:
            return {}
        former = {name: self._written[name] for name in (CERTIFICATE, KEY) if name in self._written}
        try:
            pair = _read_pems(given.certificate, given.key)
            if pair != former:
                _require_usable(pair, given.certificate, given.key)
        except (OSError, ValueError) as problem:
            if not former:
                former = self._read_copies()
            if not former:
                raise
            words = f"keeps the former certificate: {given.certificate} with {given.key} can't be used: {problem}"
            if words != self._pair_problem:
                log.warning("the broker %s", words)
            self._pair_problem = words
            return former
        self._pair_problem = ""
        return pair

    def _read_copies(self) -> dict[str, bytes]:
        """The pair in the folder; {} if that can't be used."""
        certificate, key = str(self._folder / CERTIFICATE), str(self._folder / KEY)
        try:
            pair = _read_pems(certificate, key)
            _require_usable(pair, certificate, key)
        except (OSError, ValueError):
            return {}
        return pair

    def _name_fresh(self, name: str) -> Path:
        return self._folder / f".{name}.new"

    def _write_all(self, files: Mapping[str, bytes], user: pwd.struct_passwd) -> None:
        """Replace them once all are written beside: a certificate without its key would be of no use."""
        try:
            for name, data in files.items():
                fresh = self._name_fresh(name)
                fresh.unlink(missing_ok=True)
                with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
                    os.fchown(out.fileno(), user.pw_uid, user.pw_gid)  # it reads them after it has given up being root
                    out.write(data)
            for name in files:
                self._name_fresh(name).replace(self._folder / name)
        except OSError:
            with contextlib.suppress(OSError):
                for name in files:
                    self._name_fresh(name).unlink(missing_ok=True)
            raise

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


def _give(folder: Path, user: pwd.struct_passwd) -> None:
    """Make ``folder``, and the files in it, the user's. Links in it are left alone, as is all that isn't a plain file with one
    name: who has taken over that user may have put them there, and would own what they lead to."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fchown(descriptor, user.pw_uid, user.pw_gid)
        os.fchmod(descriptor, 0o700)
        for name in os.listdir(descriptor):
            with contextlib.suppress(FileNotFoundError):
                _give_one(os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=descriptor), user)
    finally:
        os.close(descriptor)


def _give_one(opened: int, user: pwd.struct_passwd) -> None:
    """Takes the descriptor over."""
    try:
        about = os.fstat(opened)
        if stat.S_ISREG(about.st_mode) and about.st_nlink == 1:
            os.chown(f"/proc/self/fd/{opened}", user.pw_uid, user.pw_gid)  # fchown refuses O_PATH
    finally:
        os.close(opened)


def _is_there(path: Path, data: bytes, user: pwd.struct_passwd) -> bool:
    """Whether the file is the user's, and has just this."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
            about = os.fstat(file.fileno())
            is_right = about.st_uid == user.pw_uid and stat.S_IMODE(about.st_mode) == 0o600
            return is_right and file.read(len(data) + 1) == data
    except OSError:
        return False


def _read_pems(certificate: str, key: str) -> dict[str, bytes]:
    """Raises OSError, ValueError."""
    return {CERTIFICATE: _read_pem(certificate), KEY: _read_pem(key)}


def _require_usable(pair: Mapping[str, bytes], certificate: str, key: str) -> None:
    """Raises OSError, ValueError unless ``pair``, which was read from these paths, belongs together."""
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=bytes)
    if _read_pems(certificate, key) != pair:
        raise ValueError("they are being replaced just now")


def _read_pem(path: str) -> bytes:
    """Raises OSError, ValueError."""
    with open(path, "rb") as file:
        data = file.read(_MOST_PEM_BYTES + 1)
    if len(data) > _MOST_PEM_BYTES:
        raise ValueError(f"{path} is larger than {_MOST_PEM_BYTES >> 20} MiB")
    return data


def _read_words(pid: int) -> list[bytes]:
    """The command line of a process; empty if there is none, or it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def _die_with_parent() -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
