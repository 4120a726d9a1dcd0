"""The program in the guide that takes webhooks, as it stands there."""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import http.server
import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

GUIDE = Path(__file__).parents[3] / "docs/guide/webhooks.md"


@pytest.fixture(scope="module")
def hook() -> Iterator[tuple[int, bytes]]:
    """Its port and key."""
    found = re.search(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert found is not None
    program, serves = found[1].rsplit("http.server.HTTPServer", 1)
    assert "serve_forever" in serves
    names: dict[str, Any] = {"__name__": "guide"}
    exec(program, names)
    with http.server.HTTPServer(("127.0.0.1", 0), names["Hook"]) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        yield server.server_address[1], names["KEY"]
        server.shutdown()
        serving.join()


def post(port: int, body: bytes, headers: dict[str, str]) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("POST", "/", body, headers)
    status = connection.getresponse().status
    connection.close()
    return status


def test_it_takes_a_signed_message_and_refuses_whatever_else_comes(hook: tuple[int, bytes]) -> None:
    port, key = hook
    body, now = json.dumps({"type": "test"}).encode(), str(int(time.time()))
    digest = hmac.digest(key, f"m1.{now}.".encode() + body, hashlib.sha256)
    good = {
        "webhook-id": "m1",
        "webhook-timestamp": now,
        "webhook-signature": "v1," + base64.b64encode(digest).decode(),
    }
    assert post(port, body, good) == 204
    assert post(port, body + b" ", good) == 401
    for name in good:
        assert post(port, body, {key: value for key, value in good.items() if key != name}) == 401
    for wrong in ("soon", "-1", "1e3", ""):
        assert post(port, body, {**good, "webhook-timestamp": wrong}) == 401
    assert post(port, body, {**good, "webhook-signature": "v1,\u00e9"}) == 401
