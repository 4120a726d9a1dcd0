"""A witness, as a cluster asks it. Blocking; usable from threads. Its answers are bounded in size and time."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from weft.client.answer import ClientAnswer
from weft.client.context import Context
from weft.client.http import Http
from weft.client.tls import fetch_ca
from weft.contracts.clock import read_boot_time
from weft.kinds.fields.cluster.link import WitnessToken
from weft.objects.errors import InvalidInput, NotAuthenticated, Unavailable, WeftError
from weft.objects.identity import SERVER_NAME
from weft.protocol.failover.witness import MOST_REQUEST_BYTES, PATH, WitnessAnswer, WitnessRequest

SILENCE_SECONDS, MOST_SECONDS = 4.0, 8.0
ROUND_SECONDS = 30.0  # after which it begins no request more: less than a promise lasts


class WitnessLink(msgspec.Struct, frozen=True):
    url: str
    token: WitnessToken

    def __repr__(self) -> str:
        return f"WitnessLink({self.url!r}, …)"


def ask_witness(link: WitnessLink, requests: Sequence[WitnessRequest]) -> list[WitnessAnswer | WeftError]:
    """The answers in order, or why there is none: it was refused, or others took too long. Raises NotAuthenticated if another
    answers there, or if the witness doesn't take the secret; Unavailable if it doesn't answer."""
    ca = fetch_ca(link.url, link.token.ca_sha256, timeout_seconds=SILENCE_SECONDS)
    context = Context(server=link.url, ca=ca, token=link.token.secret, server_name=SERVER_NAME)
    http = Http(
        context, timeout_seconds=SILENCE_SECONDS, most_answer_bytes=MOST_REQUEST_BYTES, most_seconds=MOST_SECONDS
    )
    try:
        begun, heard = read_boot_time(), list[WitnessAnswer | WeftError]()
        for one in requests:
            if read_boot_time() - begun > ROUND_SECONDS:
                heard.append(Unavailable("the witness answers too slowly"))
            else:
                heard.append(_read(http.request("POST", PATH, msgspec.json.encode(one)), one.peer))
        return heard
    finally:
        http.close()


def _read(answer: ClientAnswer, peer: str) -> WitnessAnswer | WeftError:
    if answer.status == 401:
        raise NotAuthenticated("the witness doesn't know this cluster's secret any more")
    if answer.status in (429, 503) or answer.status >= 500:
        raise Unavailable(f"the witness answers with HTTP status {answer.status}")
    try:
        if answer.status == 200:
            return msgspec.json.decode(answer.body, type=WitnessAnswer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    if answer.status == 403:
        return InvalidInput("the witness takes no more VMs of this cluster today")
    return InvalidInput(
        f"the witness refuses what this release asks (HTTP status {answer.status}): is {peer} a site there?"
    )
