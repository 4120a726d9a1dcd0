"""What a device's message says, also where one member of it is odd."""

from __future__ import annotations

from typing import Any

import pytest

from weft.drivers.device.mqtt.message import MOST_PROPERTIES, PayloadRefused, read_message


@pytest.mark.parametrize(
    ("payload", "values", "wrong"),
    [
        (b'{"state": "ON", "power": 12.5, "on": true, "n": 3}', {"state": "ON", "power": 12.5, "on": True, "n": 3}, []),
        (b'{"state": "OFF", "power": null, "voltage": 237.1}', {"state": "OFF", "voltage": 237.1}, []),
        (b'{"power": null}', {}, []),
        (b"{}", {}, []),
        (b'{"update": {"state": "idle"}, "power": 1.0}', {"power": 1.0}, ["update"]),
        (b'{"rgb": [1, 2, 3], "power": 1.0, "far": 1e999}', {"power": 1.0}, ["rgb", "far"]),
    ],
)
def test_one_odd_member_costs_nothing_but_itself(payload: bytes, values: dict[str, Any], wrong: list[str]) -> None:
    assert read_message(payload) == (values, wrong)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        *((one, "payload") for one in (b"", b"null", b"[1]", b"3", b"\xff\xfe", b'{"t": NaN}', b"[" * 5000, b'{"t": ')),
        (b'{"a": ' * 5000, "payload"),
        (b"{" + b",".join(b'"p%d": 1' % number for number in range(MOST_PROPERTIES + 1)) + b"}", "size"),
        (b"{" + b",".join(b'"p%d": []' % number for number in range(MOST_PROPERTIES + 1)) + b"}", "size"),
    ],
)
def test_what_is_no_message_is_refused_as_a_whole(payload: bytes, reason: str) -> None:
    with pytest.raises(PayloadRefused) as refused:
        read_message(payload)
    assert refused.value.reason == reason
