"""Disk reads and name lookups of a connection, made in a thread of its own.

Both may hang for minutes. In the process's shared threads they would then hold up what saves the twins, and keep the process from
ending; so there is one thread for them, which nobody waits for.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from weft.drivers.cache.redis.place import RedisAddress
from weft.drivers.cache.redis.replies import Broken

MOST_PASSWORD_BYTES = 4096
MOST_ADDRESSES = 8
T = TypeVar("T")


class Way(msgspec.Struct, frozen=True):
    """``addresses``: of the host; [] for a socket's path. ``password``: "" for none."""

    addresses: list[str]
    password: str
    tls: ssl.SSLContext | None


class Errand:
    """One at a time."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None

    async def run(self, act: Callable[[], T]) -> T:
        """Return the result of ``act``. Raises what it raises, and Broken while the previous errand hasn't ended."""
        if self._thread is not None and self._thread.is_alive():
            raise Broken("the name of its host, or a file of its settings, is still being read")
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()

        def note(result: T | None, problem: Exception | None) -> None:
            if answer.done():
                return  # the caller's time was over
            if problem is not None:
                answer.set_exception(problem)
            else:
                answer.set_result(result)  # type: ignore[arg-type]  # no problem: there is a result

        def work() -> None:
            result, problem = None, None
            try:
                result = act()
            except Exception as failure:  # the caller's to judge
                problem = failure
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(note, result, problem)

        self._thread = threading.Thread(target=work, name="weft-cache-errand", daemon=True)
        self._thread.start()
        return await answer


def find_way(place: RedisAddress, password: Path | None, authority: Path | None) -> Way:
    """Blocks. Raises Broken."""
    secret = _read_password(password)
    if place.path:
        return Way([], secret, None)
    tls = _make_tls(authority) if place.tls else None
    try:
        found = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as problem:
        raise Broken(f"its name isn't known here: {getattr(problem, 'strerror', '') or problem}") from None
    addresses = list(dict.fromkeys(_show_address(one[4]) for one in found))[:MOST_ADDRESSES]
    return Way(addresses, secret, tls)


def _show_address(place: tuple[object, ...]) -> str:
    """Show an address, with its interface number if it is link-local."""
    is_of_link = len(place) == 4 and place[3] and "%" not in str(place[0])
    return f"{place[0]}%{place[3]}" if is_of_link else str(place[0])


def _read_password(path: Path | None) -> str:
    """Its first line, so that editors may end it as they do. Raises Broken."""
    if path is None:
        return ""
    try:
        with path.open("rb") as file:
            text = file.read(MOST_PASSWORD_BYTES + 1)
    except OSError as problem:
        raise Broken(f"the file of cache_password can't be read: {problem.strerror}") from None
    line = text.partition(b"\n")[0].removesuffix(b"\r")
    if not line or len(text) > MOST_PASSWORD_BYTES:
        raise Broken(
            f"the file of cache_password must hold a password on one line, of {MOST_PASSWORD_BYTES} bytes at most"
        )
    try:
        return line.decode()
    except UnicodeDecodeError:
        raise Broken("the file of cache_password must be UTF-8") from None


def _make_tls(authority: Path | None) -> ssl.SSLContext:
    """Raises Broken."""
    try:
        return ssl.create_default_context(cafile=str(authority) if authority is not None else None)
    except OSError as problem:
        raise Broken(f"cache_authority can't be read: {getattr(problem, 'strerror', '') or problem}") from None
