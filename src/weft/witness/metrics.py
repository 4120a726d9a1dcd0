"""The witness's own metrics and health over plain HTTP, where ``weft witness --metrics ADDRESS:PORT`` says: counts, and no names of
sites or groups."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from weft import __version__
from weft.contracts.clock import Clock
from weft.serving.answer import Answer
from weft.serving.request import Request
from weft.serving.server import HttpServer
from weft.serving.shares import Bounds
from weft.telemetry.metrics.exposition import MEDIA_TYPE, Family, list_process, one, render_metrics
from weft.witness.listener import WitnessListener
from weft.witness.service import Witness

_BOUNDS = Bounds(most_connections=64, most_unwanted_bytes=65_536, most_body_bytes=0, parts=4)


def make_metrics_server(
    sockets: Sequence[socket.socket], witness: Witness, listener: WitnessListener, clock: Clock
) -> HttpServer:
    """A server at ``sockets`` that isn't started yet."""

    async def answer(request: Request) -> Answer:
        if request.method not in ("GET", "HEAD"):
            return _make_text(405, "only GET\n")
        if request.path == "/metrics":
            return Answer(200, render_metrics(list_metrics(witness, listener)), (("content-type", MEDIA_TYPE),))
        if request.path == "/healthz":
            return _make_text(200, "ok\n")
        return _make_text(404, "here are /metrics and /healthz\n")

    return HttpServer(answer, sockets, None, clock, _BOUNDS, _make_text)


def list_metrics(witness: Witness, listener: WitnessListener) -> list[Family]:
    counts = witness.count()
    answers: dict[tuple[tuple[str, str], ...], float] = {
        (("answer", word),): count for word, count in sorted(listener.answers.items())
    }
    return [
        Family("weft_build_info", "Version of weft", {(("version", __version__),): 1}),
        one("weft_witness_sites", "Sites that the witness serves", counts.sites),
        one("weft_witness_groups", "Groups of guests that two sites have named", counts.groups),
        one("weft_witness_armed_groups", "Groups of which both sites have named the same primary", counts.armed),
        Family("weft_witness_answers_total", "Answers to sites, by what they said", answers),
        *list_process(),
    ]


def _make_text(status: int, text: str) -> Answer:
    return Answer(status, text.encode(), (("content-type", "text/plain; charset=utf-8"),))
