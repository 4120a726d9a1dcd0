"""Which of the ports that a node's programs listen on are told, so that nobody publishes them."""

from __future__ import annotations

import msgspec

from weft.agent.network.plan import fold_held
from weft.contracts.store import MAX_DIGEST_BYTES
from weft.protocol.heartbeat import (
    MOST_GUESTS,
    MOST_PORTS,
    Digest,
    HeldPorts,
    Use,
    make_digest,
    make_held,
    write_digest,
)

WEB, SYSLOG, ASKS = ("tcp", 8080), ("udp", 514), ("udp", 40404)


def test_a_socket_of_udp_is_told_if_it_lasts_and_one_of_tcp_at_once() -> None:
    assert fold_held({WEB, SYSLOG, ASKS}, set(), set()) == HeldPorts((8080,))
    assert fold_held({WEB, SYSLOG}, {WEB, SYSLOG, ASKS}, set()) == HeldPorts((8080,), (514,))


def test_what_weft_publishes_there_is_no_program_s() -> None:
    assert fold_held({WEB, SYSLOG}, {SYSLOG}, {WEB}) == HeldPorts((), (514,))


def test_however_many_there_are_a_sign_of_life_stays_small() -> None:
    all_ = {(protocol, port) for protocol in ("tcp", "udp") for port in range(1, 65536)}
    held = make_held(all_)
    assert held == HeldPorts(tuple(range(1, MOST_PORTS + 1)), tuple(range(1, MOST_PORTS + 1)))
    full = make_digest({f"{number:032}": Use(4_000_000, 1 << 40, 1 << 44) for number in range(MOST_GUESTS)}, Use())
    assert len(write_digest(msgspec.structs.replace(full, held=held))) < MAX_DIGEST_BYTES
    assert write_digest(Digest(measured=False)) != write_digest(Digest())
