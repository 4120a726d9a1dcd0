"""Requests to linked clusters, in threads of their own, and which of them may still arrive there."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TypeVar

from weft.client.cluster.peer import PeerClient, PeerLink, connect_peer
from weft.contracts.clock import Clock
from weft.objects.errors import Unavailable, WeftError

# So long after a request that had no answer, or after another leader may have sent one, it may still arrive there.
SETTLED_SECONDS = 100.0

T = TypeVar("T")
R = TypeVar("R")


class NotBegun(Unavailable):
    """The request was not sent: it is left to the next turn."""


def ask_each(
    link: PeerLink, subjects: Iterable[T], ask: Callable[[PeerClient, T], R], seconds: float, clock: Clock
) -> list[R | WeftError]:
    """The answer to each, in order. Once the cluster doesn't answer, or after ``seconds``, the others are NotBegun. Blocks."""
    answers: list[R | WeftError] = []
    began, client = clock.elapsed(), connect_peer(link)
    try:
        for subject in subjects:
            if answers and isinstance(silent := answers[-1], Unavailable):
                answers.append(NotBegun(silent.message))
            elif clock.elapsed() - began > seconds:
                answers.append(NotBegun("it is left to the next turn"))
            else:
                try:
                    answers.append(ask(client, subject))
                except WeftError as problem:
                    answers.append(problem)
    finally:
        client.close()
    return answers


class Unanswered:
    """Objects that had a request without an answer, by their key."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self._began = clock, clock.elapsed()
        self._since: dict[str, float] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._since

    def note(self, key: str, answer: object) -> None:
        """``answer``: or why there was none."""
        if not isinstance(answer, Unavailable):
            self._since.pop(key, None)
        elif not isinstance(answer, NotBegun):
            now = self._clock.elapsed()
            self._since = {key: at for key, at in self._since.items() if now - at < 2 * SETTLED_SECONDS} | {key: now}

    def is_sure(self, key: str, read_at: float) -> bool:
        """Whether no request about it, of this leader's or of the one before, can have arrived after ``read_at``, elapsed seconds:
        what was read then still holds."""
        return read_at - max(self._began, self._since.get(key, 0.0)) >= SETTLED_SECONDS


async def ask_in_parts(
    subjects: Sequence[T], ask: Callable[[Sequence[T]], Sequence[R]], most_threads: int, most_of_thread: int
) -> list[R]:
    """The answers of ``ask``, which blocks, in order, from at most so many threads with about so many subjects each."""
    count = min(most_threads, -(-len(subjects) // most_of_thread))
    parts = await asyncio.gather(*(in_thread(partial(ask, subjects[first::count])) for first in range(count)))
    return [parts[place % count][place // count] for place in range(len(subjects))]


async def in_thread(work: Callable[[], T]) -> T:
    """The result of ``work``, which blocks, in a thread that keeps no process from its end."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(set_it: Callable[[], None]) -> None:
        if not done.done():
            set_it()

    def run() -> None:
        try:
            result = work()
        except BaseException as problem:  # it is raised where it is awaited
            set_it = partial(done.set_exception, problem)
        else:
            set_it = partial(done.set_result, result)
        with contextlib.suppress(RuntimeError):  # the loop has ended in the meantime
            loop.call_soon_threadsafe(settle, set_it)

    threading.Thread(target=run, name="weft-peer", daemon=True).start()
    return await done
