"""Secrets marked ``offline``, sealed on this node's disk: a file for each allocation, encrypted with a key that follows from the
node's own. They serve a start while the server can't be reached, also after the agent or the machine was started again.

One who reads the whole folder of the node has its key too, as root does. A file alone, as in a copy of some files, tells nothing.
AES-256-CTR by openssl, whose library would stay in the agent's memory, and HMAC-SHA-256 over what it gave (encrypt-then-MAC).
"""

from __future__ import annotations

import contextlib
import hmac
import logging
import os
import re
import shutil
import subprocess
from pathlib import Path

import msgspec

from weft.contracts.durable_file import write_durably
from weft.protocol.report import OpenedSecrets

log = logging.getLogger("weft.agent")
FOLDER = "secrets"
KEY = "node.key"
OPENSSL_SECONDS = 30
_UID = re.compile(r"[A-Za-z0-9-]{1,64}")
_MOST_BYTES = 16 << 20


class _File(msgspec.Struct, frozen=True):
    data: bytes  # as openssl wrote it: its salt, and the encrypted secrets
    mac: bytes
    version: int = 1


class SealedSecrets:
    """Sealed secrets in ``kind`` in the node's ``folder``; ``owner`` is what the uids are of, for the log. Blocking."""

    def __init__(self, folder: Path, kind: str = FOLDER, owner: str = "allocation") -> None:
        self._owner = owner
        self._folder, self._key = folder / kind, folder / KEY
        self._kept: dict[str, OpenedSecrets] = {}  # what the files hold that this agent wrote, by allocation's uid

    def put(self, uid: str, opened: OpenedSecrets) -> bool:
        """Keep ``opened`` for the allocation, in place of what was kept. Where that can't be, logs why, nothing is kept, and
        returns False."""
        if not _UID.fullmatch(uid):
            return False
        if self._kept.get(uid) == opened:
            return True
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            data = self._crypt("-e", uid, msgspec.msgpack.encode(opened))
            write_durably(self._folder / uid, msgspec.msgpack.encode(_File(data, self._sign(uid, data))))
        except (OSError, subprocess.SubprocessError) as problem:
            log.warning(
                "the secrets of %s %s can't be kept for a start without the server: %s", self._owner, uid, problem
            )
            self.drop(uid)
            return False
        self._kept[uid] = opened
        return True

    def get(self, uid: str) -> OpenedSecrets | None:
        """Return what is kept for the allocation; None if that is nothing, or damaged, or of another key."""
        if uid in self._kept or not _UID.fullmatch(uid):
            return self._kept.get(uid)
        try:
            file = self._folder / uid
            if file.stat().st_size > _MOST_BYTES:
                raise ValueError("it is too large")
            read = msgspec.msgpack.decode(file.read_bytes(), type=_File)
            if read.version != 1 or not hmac.compare_digest(read.mac, self._sign(uid, read.data)):
                raise ValueError("it was sealed with another key, or changed")
            opened = msgspec.msgpack.decode(self._crypt("-d", uid, read.data), type=OpenedSecrets)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, msgspec.MsgspecError, subprocess.SubprocessError) as problem:
            log.warning("the kept secrets of %s %s can't be read: %s", self._owner, uid, problem)
            return None
        self._kept[uid] = opened
        return opened

    def drop(self, uid: str) -> None:
        """Nothing is kept for the allocation any more."""
        self._kept.pop(uid, None)
        if _UID.fullmatch(uid):
            with contextlib.suppress(OSError):
                (self._folder / uid).unlink()

    def list_kept(self) -> list[str]:
        """Uids of the allocations with something kept."""
        with contextlib.suppress(OSError):
            return sorted(path.name for path in self._folder.iterdir() if _UID.fullmatch(path.name))
        return []

    def _crypt(self, act: str, uid: str, data: bytes) -> bytes:
        """Encrypt (``-e``) or decrypt (``-d``). The key goes through a pipe: other processes see command lines."""
        program = shutil.which("openssl")
        if program is None:
            raise FileNotFoundError("openssl is not installed: apt-get install openssl")
        reading, writing = os.pipe()
        try:
            os.write(writing, self._derive(f"encrypt {uid}").hex().encode() + b"\n")
            os.close(writing)
            words = [
                program,
                "enc",
                act,
                "-aes-256-ctr",
                "-pbkdf2",
                "-iter",
                "1",
                "-md",
                "sha256",
                "-pass",
                f"fd:{reading}",
            ]
            done = subprocess.run(
                words, input=data, capture_output=True, check=True, timeout=OPENSSL_SECONDS, pass_fds=(reading,)
            )
        finally:
            os.close(reading)
        return done.stdout

    def _sign(self, uid: str, data: bytes) -> bytes:
        return hmac.digest(self._derive(f"sign {uid}"), data, "sha256")

    def _derive(self, use: str) -> bytes:
        """A key for one use and one allocation. Raises OSError without the node's."""
        return hmac.digest(self._key.read_bytes(), f"weft offline secrets: {use}".encode(), "sha256")
