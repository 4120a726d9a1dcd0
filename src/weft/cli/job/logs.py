"""The logs of a job's tasks, all at once: each line begins with its task; tasks and tries that begin meanwhile join. Ends with
the job."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

from weft.cli.command.exit_codes import INTERRUPTED, OK
from weft.cli.command.target import Target
from weft.cli.session import Session
from weft.cli.stream.logs import Lines, carry_from_start
from weft.kinds.fields.cells import dig
from weft.kinds.job import ENDED, task_name
from weft.kinds.registry import BY_NAME
from weft.objects.errors import WeftError
from weft.objects.index_ranges import read_indexes

MOST_AT_ONCE = 32
_POLL_SECONDS = 0.2
Object = Mapping[str, Any]


class Try(NamedTuple):
    """One try of one task; its container."""

    task: int
    attempt: int
    container: str


def read_tries(job: Object) -> dict[int, int]:
    """How often each task was begun."""
    tries = dig(job, "status.tries") or {}
    return {index: int(count) for count, indexes in tries.items() for index in read_indexes(indexes)}


class Joining:
    """The choice of tries to follow, at most ``most`` together: of each task the newest at first, then each that begins. Pure."""

    def __init__(self, most: int = MOST_AT_ONCE) -> None:
        self._most = most
        self._known: dict[int, int] = {}
        self._waiting: deque[Try] = deque()
        self._open = 0
        self._begun = False

    @property
    def is_idle(self) -> bool:
        return not self._open and not self._waiting

    @property
    def waiting(self) -> int:
        """How many wait for another one's end."""
        return len(self._waiting)

    def see(self, job: Object) -> None:
        for index, attempt in sorted(read_tries(job).items()):
            before = self._known.get(index, 0) if self._begun else attempt - 1
            self._waiting += [
                Try(index, one, task_name(job["name"], index, one)) for one in range(before + 1, attempt + 1)
            ]
            self._known[index] = attempt
        self._begun = True

    def take(self) -> list[Try]:
        """Those to begin with now."""
        taken = []
        while self._waiting and self._open < self._most:
            taken.append(self._waiting.popleft())
            self._open += 1
        return taken

    def end(self) -> None:
        """One that was taken has ended."""
        self._open -= 1


class _News(NamedTuple):
    """``job`` as it is now (None: it is gone); ``ended``: a try's log; ``error``: what ended the watching."""

    job: Object | None = None
    ended: Try | None = None
    error: WeftError | OSError | None = None


def follow_tasks(session: Session, job: Object, asked: dict[str, Any], prefix: bool) -> int:
    """Print what its tasks print until it has ended, or Ctrl-C; the exit code. Raises WeftError."""
    client, news, lock = session.make_client(), queue.Queue[_News](), threading.Lock()

    def listen() -> None:
        seen = False
        try:
            for event in client.watch_forever("job", project=job.get("project"), fields=f"name={job['name']}"):
                if event.type in ("put", "delete") and event.object.get("uid") == job["uid"]:
                    seen = True
                    news.put(_News(event.object if event.type == "put" else None))
                elif event.type == "synced" and not seen:
                    news.put(_News(None))
        except WeftError as problem:
            news.put(_News(error=problem))

    def show(one: Try) -> None:
        lines = Lines(f"{one.container}  " if prefix else "", lock)
        try:
            try:
                carry_from_start(session, Target(BY_NAME["container"], one.container), asked, lines.take)
            except WeftError as problem:
                session.notify(f"{one.container}: {problem.message}")
            finally:
                lines.end()
        except OSError as problem:  # nobody reads on, or a full disk: no line of any task can be put there
            news.put(_News(error=problem))
        else:
            news.put(_News(ended=one))

    threading.Thread(target=listen, daemon=True).start()
    joining, over, warned = Joining(), False, False
    try:
        while not (over and joining.is_idle):
            for one in joining.take():
                threading.Thread(target=show, args=(one,), daemon=True).start()
            if joining.waiting and not warned:
                warned = True
                session.notify(f"{MOST_AT_ONCE} tasks are followed at a time; the others are followed as these end")
            item = _next(news)
            if item.error is not None:
                raise item.error
            if item.ended is not None:
                joining.end()
                continue
            over = item.job is None or dig(item.job, "status.phase") in ENDED
            if item.job is not None:
                joining.see(item.job)
    except KeyboardInterrupt:
        return INTERRUPTED  # enough was seen
    finally:
        client.close()
    return OK


def _next(news: queue.Queue[_News]) -> _News:
    while True:
        try:
            return news.get(timeout=_POLL_SECONDS)  # Ctrl-C doesn't interrupt a wait without end
        except queue.Empty:
            continue
