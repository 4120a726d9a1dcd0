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
from collections.abc import Iterable, Mapping
from pathlib import Path

from weft.contracts.clock import Clock
from weft.edge.broker.attendance import Attendance
from weft.edge.broker.config import (
    CONFIG,
    DATA,
    DATABASE,
    GATEWAY,
    OWN,
    PASSWORDS,
    RIGHTS,
    SOCKET,
    Bounds,
    Listening,
    hash_password,
    is_of_password,
    write_config,
    write_passwords,
    write_rights,
)
from weft.edge.broker.ownership import find_user, give, is_there
from weft.edge.broker.pair import CERTIFICATE, KEY, read_pems, require_usable
from weft.edge.broker.subscription import SubscriptionWatch, read_subscription
from weft.objects.errors import Unavailable

PROGRAM, PID = "mosquitto", "broker.pid"
LOOK_SECONDS = 1.0
MOST_FAILURES = 2
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, WELL_AFTER_SECONDS = 0.2, 5.0, 10.0
END_SECONDS = 10.0
_LINES = 20  # of its complaints that are kept
_PR_SET_PDEATHSIG = 1
_SALT_BYTES = 12
_MOST_LINE_BYTES = 4 << 10
_OF_ITS_SOCKET = "Warning: Unable to set TCP_NODELAY."  # for the gateway's own line, which isn't TCP
_FAILED = 1  # its exit status where it can't start: with a socket already there a port is to blame, not its database
ASIDE = "mosquitto.broken"

log = logging.getLogger("weft.edge.broker")


def require_program() -> str:
    """Raises Unavailable where Mosquitto isn't installed."""
    found = shutil.which(PROGRAM) or shutil.which(PROGRAM, path="/usr/sbin:/usr/local/sbin")
    if found is None:
        raise Unavailable("the broker needs the program mosquitto", hint="apt-get install mosquitto")
    return found


class Broker:
    """``folder`` is its own, and made when it is missing. ``password`` is the gateway's, another at each start of the broker, for
    the Unix socket ``path``. ``is_open``: it is that of announcements, which need no password and are kept in memory."""

    def __init__(
        self, folder: Path, listening: Listening, bounds: Bounds, clock: Clock, *, is_open: bool = False
    ) -> None:
        self._folder, self._listening, self._bounds, self._clock = folder, listening, bounds, clock
        self._is_open = is_open
        self._program = require_program()
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._devices: set[tuple[str, str]] = set()
        self._hashes: dict[str, str] = {}  # by username, without the gateway's
        self._written: dict[str, bytes] = {}
        self._pair_problem = ""
        self._words = "the broker of announcements" if is_open else "the broker"
        self._subscriptions = SubscriptionWatch()
        self._flooders: dict[str, str] = {}  # usernames with the hashes that don't let them in any more
        self._attendance = Attendance()
        self._look = asyncio.Event()
        self.path = folder / SOCKET
        self.password = self._own_hash = ""
        self._renew_password()
        self.problem = ""
        self.starts = 0

    @property
    def pid(self) -> int:
        """0 while it doesn't run."""
        return self._process.pid if self._process is not None and self._process.returncode is None else 0

    def put_devices(self, devices: Iterable[tuple[str, str]], hashes: Mapping[str, str]) -> None:
        """Let in the devices (project, name) whose usernames have a hash; all others are put out, within a second."""
        self._devices, self._hashes = set(devices), dict(hashes)
        self._flooders = {user: hashed for user, hashed in self._flooders.items() if hashes.get(user) == hashed}
        self._subscriptions.keep(self._hashes)

    def is_put_out(self, user: str) -> bool:
        """Whether it may not log in before it has another password: it subscribed to too much that isn't its own."""
        return user in self._flooders

    def _renew_password(self) -> None:
        self.password = secrets.token_hex(16)
        self._own_hash = hash_password(self.password, secrets.token_bytes(_SALT_BYTES))

    @staticmethod
    def renew_hash(hashed: str, password: str) -> str:
        """The hash of ``password``: ``hashed`` if that is one."""
        if hashed and is_of_password(hashed, password):
            return hashed
        return hash_password(password, secrets.token_bytes(_SALT_BYTES))

    async def keep(self) -> None:
        """Run it until this is cancelled."""
        pause, failures = FIRST_PAUSE_SECONDS, 0
        try:
            while True:
                began = self._clock.elapsed()
                try:
                    await end_former(self._folder, self._clock)
                    self._renew_password()
                    self._check_database(failures)
                    self._write(anew=True)
                    failures = failures + 1 if await self._run_once() else 0
                except (OSError, ValueError) as problem:
                    self.problem = f"can't be started: {problem}"
                    await self._end()
                if self._clock.elapsed() - began > WELL_AFTER_SECONDS:
                    pause, failures = FIRST_PAUSE_SECONDS, 0
                log.warning("%s %s; it starts again in %g s", self._words, self.problem, pause)
                await self._clock.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
        finally:
            await self._end()

    def _check_database(self, failures: int) -> None:
        """Put aside what it could never read again: a database that would fill its memory, or with which it ended twice."""
        database = self._folder / DATABASE
        try:
            size = database.lstat().st_size
        except FileNotFoundError:
            return
        most = self._bounds.memory_bytes // 2
        if size <= most and failures < MOST_FAILURES:
            return
        why = f"is larger than {most >> 20} MiB" if size > most else f"ended it {failures} times"
        database.replace(self._folder / ASIDE)
        log.error("%s %s; it is kept as %s, and the broker begins without it", database, why, self._folder / ASIDE)

    async def _run_once(self) -> bool:
        """Start it, and watch its files until it ends; a folder that is gone ends it, too: it has lost what it would keep.
        Returns whether its database may be to blame for its end."""
        self.path.unlink(missing_ok=True)
        process = await asyncio.create_subprocess_exec(
            *(self._program, "-c", str(self._folder / CONFIG)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            cwd=self._folder,  # the path of a socket has 107 bytes at most, so it is given from here on
            limit=_MOST_LINE_BYTES,
            preexec_fn=_die_with_parent,
        )
        self._process, self.problem = process, self._pair_problem
        self.starts += 1
        self._attendance = Attendance()
        noted = self._note(process.pid)
        complaints: list[str] = []
        self._reading = asyncio.create_task(self._read_complaints(process, complaints))
        waiting = asyncio.create_task(process.wait())
        why = ""
        try:
            while not waiting.done():
                looking = asyncio.create_task(self._clock.sleep(LOOK_SECONDS))
                called = asyncio.create_task(self._look.wait())
                await asyncio.wait((waiting, looking, called), return_when=asyncio.FIRST_COMPLETED)
                looking.cancel()
                called.cancel()
                self._look.clear()
                if waiting.done():
                    break
                why = self._find_end(process.pid)
                if why:
                    process.kill()
                    await process.wait()
                    continue
                noted = noted or self._note(process.pid)
                if not self._renew(noted):
                    continue
                if not self._attendance.is_lost:
                    process.send_signal(signal.SIGHUP)
                    continue
                why = "may have forgotten a client whose id a stranger named, so it reads changed files at its start"
                await self._end()
        finally:
            waiting.cancel()
        words = "; ".join(complaints)[-300:]
        self.problem = why or f"ended with {process.returncode}" + (f": {words}" if words else "")
        return not why and not (process.returncode == _FAILED and self.path.exists())

    def _find_end(self, pid: int) -> str:
        """Why it has to end now; "" while it may go on."""
        if not (self._folder / CONFIG).exists() or not (self._folder / DATA).exists():
            return "lost its folder"
        most = self._bounds.memory_bytes // 2
        if self._is_open and _measure_memory(pid) > most:
            return f"held more than {most >> 20} MiB of what strangers sent and begins without it"
        return ""

    async def _read_complaints(self, process: asyncio.subprocess.Process, into: list[str]) -> None:
        assert process.stderr is not None
        while True:
            try:
                line = await process.stderr.readline()
            except ValueError:  # a line longer than the reader holds
                continue
            if not line:
                return
            text = line.decode(errors="replace").strip()
            if subscribed := read_subscription(text):
                if self._subscriptions.note(*subscribed):
                    self._put_out(subscribed[0])
                continue
            if self._attendance.note(text):
                continue
            if text == _OF_ITS_SOCKET:
                continue
            text = text[:200]
            into[:] = [*into[-_LINES + 1 :], text]
            log.debug("%s", text)

    def _put_out(self, user: str) -> None:
        if user in self._hashes and user not in self._flooders:
            self._flooders[user] = self._hashes[user]
            self._subscriptions.forget(user)
            self._look.set()
            log.warning("%s subscribes to too many topics that aren't its own; it needs another password now", user)

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
            log.warning("%s %s", self._words, problem)
        self.problem = problem or self._pair_problem
        return changed

    def _write(self, *, anew: bool = False) -> bool:
        """Write the files that differ from what was written last; if ``anew``, from what lies in the folder. All of them
        are written, or all stay as they were. Returns whether one was. Raises OSError; ValueError if ``anew``."""
        user = find_user()
        hashes = {user: hashed for user, hashed in self._hashes.items() if user not in self._flooders}
        hashes[GATEWAY] = self._own_hash
        tls, listening = self._read_pair(), self._listening
        if tls:
            names = str(self._folder / CERTIFICATE), str(self._folder / KEY)
            listening = Listening(listening.address, listening.port, *names)
        config = write_config(self._folder, listening, self._bounds, user.pw_name, is_open=self._is_open)
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
            give(data, user)
            own = self._folder / OWN
            own.mkdir(exist_ok=True)
            give(own, user)
            if not tls:  # it was taken out: its key shall not stay behind
                for name in (CERTIFICATE, KEY):
                    (self._folder / name).unlink(missing_ok=True)
                    self._name_fresh(name).unlink(missing_ok=True)
            changed = {name: text for name, text in files.items() if not is_there(self._folder / name, text, user)}
        else:
            changed = {name: text for name, text in files.items() if self._written.get(name) != text}
        former = self._written.get(PASSWORDS, b"").decode().split()
        self._write_all(changed, user)
        self._written = files
        kept = set(files[PASSWORDS].decode().split())
        self._attendance.expect(line.partition(":")[0] for line in former if line not in kept)
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
            pair = read_pems(given.certificate, given.key)
            if pair != former:
                require_usable(pair, given.certificate, given.key)
        except (OSError, ValueError) as problem:
            if not former:
                former = self._read_copies()
            if not former:
                raise
            words = f"keeps the former certificate: {given.certificate} with {given.key} can't be used: {problem}"
            if words != self._pair_problem:
                log.warning("%s %s", self._words, words)
            self._pair_problem = words
            return former
        self._pair_problem = ""
        return pair

    def _read_copies(self) -> dict[str, bytes]:
        """The pair in the folder; {} if that can't be used."""
        certificate, key = str(self._folder / CERTIFICATE), str(self._folder / KEY)
        try:
            pair = read_pems(certificate, key)
            require_usable(pair, certificate, key)
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

    async def _end(self) -> None:
        """End the process. What it prints is read until then: asyncio's wait for a process takes until its pipes have ended,
        too."""
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


async def end_former(folder: Path, clock: Clock) -> None:
    """End the broker that a gateway which was killed left in ``folder``: it has that gateway's password, and the port. (That it
    becomes another user takes from it the signal at its parent's end.)"""
    try:
        pid = int((folder / PID).read_text())
    except (OSError, ValueError):
        return
    until = clock.elapsed() + END_SECONDS
    ends = signal.SIGTERM
    while str(folder / CONFIG).encode() in _read_words(pid):
        if clock.elapsed() > until:
            ends = signal.SIGKILL
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, ends)
        await clock.sleep(FIRST_PAUSE_SECONDS)
    (folder / PID).unlink(missing_ok=True)


def _read_words(pid: int) -> list[bytes]:
    """The command line of a process; empty if there is none, or it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def _measure_memory(pid: int) -> int:
    """Bytes that are its alone; 0 once it has ended."""
    try:
        _, resident, shared = map(int, Path(f"/proc/{pid}/statm").read_text().split()[:3])
    except (OSError, ValueError):
        return 0
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")


def _die_with_parent() -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
