"""The witness's HTTP: one path for sites, and two for who keeps it running. Requests are bounded before anything is decided; what a
request changes is on disk before its answer.

Decisions and writes are in a thread, one after the other, so that a slow disk delays answers and nothing else."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

import msgspec

from weft.contracts.clock import Clock
from weft.objects.errors import Forbidden, InvalidInput, NotAuthenticated, NotFound, Throttled, Unavailable, WeftError
from weft.protocol.failover.claim import Granted
from weft.protocol.failover.witness import MOST_REQUEST_BYTES, PATH, WitnessAnswer
from weft.serving.answer import Answer
from weft.serving.rate import RateBound
from weft.serving.request import BodyLost, Request
from weft.serving.shares import Bounds, who_is
from weft.witness.service import Witness
from weft.witness.sites import SiteFile

BOUNDS = Bounds(
    most_connections=1024,
    most_unwanted_bytes=65_536,
    most_body_bytes=MOST_REQUEST_BYTES,
    most_held_bytes=4 << 20,
    parts=8,
)
ADDRESS_RATE = 2000  # requests a second from one address
SCHEME = "Bearer "
_JSON = (("content-type", "application/json"),)
_STATUS: tuple[tuple[type[WeftError], int], ...] = (
    (InvalidInput, 400),
    (NotAuthenticated, 401),
    (Forbidden, 403),
    (NotFound, 404),
    (Throttled, 429),
    (Unavailable, 503),
)
T = TypeVar("T")
log = logging.getLogger("weft.witness")


class WitnessListener:
    """``rate``: requests a second of one site."""

    def __init__(self, witness: Witness, sites: SiteFile, clock: Clock, rate: int) -> None:
        self._witness, self._sites, self._clock = witness, sites, clock
        self._by_address, self._by_site = RateBound(ADDRESS_RATE), RateBound(rate)
        self._turn = asyncio.Lock()
        self.answers: Counter[str] = Counter()  # by what was answered
        self._troubled = ""  # why its folder can't be written or read, as the log has it

    async def answer(self, request: Request) -> Answer:
        try:
            found = await self._answer(request)
        except WeftError as problem:
            self.answers[problem.token] += 1
            self._log_trouble(problem)
            return answer_problem(problem)
        self.answers[str(type(found.answer).__struct_config__.tag)] += 1
        return Answer(200, msgspec.json.encode(found), _JSON)

    async def _answer(self, request: Request) -> WitnessAnswer:
        self._bound(self._by_address, who_is(request.address))
        if request.path != PATH or request.method != "POST":
            raise NotFound(
                f"here is POST {PATH} only", hint="this is a witness of two clusters, not a cluster's server"
            )
        given = request.header(b"authorization")
        secret = given.removeprefix(SCHEME) if given.startswith(SCHEME) else ""
        if self._sites.has_changed():
            await self._in_turn(self._take_sites)
        site = self._witness.find_site(secret)
        self._bound(self._by_site, site)
        body = await read_body(request)
        found = await self._in_turn(lambda: self._witness.answer(secret, body))
        if self._troubled:
            log.info("the witness's folder can be used again")
            self._troubled = ""
        if isinstance(found.answer, Granted):
            claim = found.answer.claim
            log.info("%s is primary in generation %d of a group", claim.holder, claim.generation.number)
        return found

    def _log_trouble(self, problem: WeftError) -> None:
        """A folder that can't be used, once: nothing is promised meanwhile."""
        if isinstance(problem, Unavailable) and problem.message != self._troubled:
            self._troubled = problem.message
            log.warning("%s; nothing is promised until it can (%s)", problem.message, problem.hint or "mend the folder")

    async def _in_turn(self, work: Callable[[], T]) -> T:
        """The result of ``work``, in a thread. If the caller hangs up meanwhile, the turn still ends with the thread: a second one
        beside it would write a file without the first one's change."""

        async def take() -> T:
            async with self._turn:
                return await asyncio.to_thread(work)

        return await asyncio.shield(take())

    def _take_sites(self) -> None:
        if self._sites.has_changed():  # still, after those before it
            self._witness.put_sites(self._sites.read())

    def _bound(self, rate: RateBound, who: str) -> None:
        if seconds := rate.take(who, self._clock.elapsed()):
            raise Throttled("too many requests", retry_after_seconds=seconds, hint="ask again later")


async def read_body(request: Request) -> bytes:
    """Raises InvalidInput for one that is too long, or that doesn't come whole."""
    body = b""
    try:
        while piece := await request.read():
            body += piece
            if len(body) > MOST_REQUEST_BYTES:
                break  # which the reader of the body refuses
    except BodyLost:
        raise InvalidInput("the request's body did not come whole", field="body") from None
    return body


def answer_problem(problem: WeftError) -> Answer:
    status = next((status for cls, status in _STATUS if isinstance(problem, cls)), 500)
    seconds = problem.retry_after_seconds
    wait = () if seconds is None else (("retry-after", str(max(1, math.ceil(seconds)))),)
    return Answer(status, msgspec.json.encode(problem.to_dict()), (*_JSON, *wait), last=status in (401, 429))


def refuse(status: int, message: str) -> Answer:
    """The answer to a request that the HTTP server refuses itself."""
    return Answer(status, msgspec.json.encode({"reason": "invalidInput", "message": message}), _JSON)
