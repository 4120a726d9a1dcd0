"""What people read when the connection of a stream is cut: what it means for what they were doing."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from weft.cli.stream.client import Stream
from weft.cli.verbs.capture import _report_end
from weft.objects.errors import Unavailable


@pytest.mark.parametrize(
    ("more", "hint"),
    [({}, "the command may still be running"), ({"cut_hint": "what came until then is whole"}, "what came until then")],
)
def test_a_cut_stream_says_what_that_means_for_its_user(more: dict[str, str], hint: str) -> None:
    here, there = socket.socketpair()
    there.close()
    sock: Any = here
    with here, pytest.raises(Unavailable, match="lost") as caught:
        Stream(sock, forward_end=False, **more).run(None)
    assert (caught.value.hint or "").startswith(hint)


def test_a_capture_without_its_end_names_what_may_be_away() -> None:
    said = list[str]()

    class Session:
        notify = staticmethod(said.append)

    class Splitter:
        packets = 3

    session, splitter = Session(), Splitter()
    _report_end(session, splitter, b"")  # type: ignore[arg-type]
    _report_end(session, splitter, b'{"ended": "seconds"}')  # type: ignore[arg-type]
    assert said == [
        "3 packets; cut off: its node or the gateway is away",
        "3 packets; ended after the time that --seconds gives",
    ]
