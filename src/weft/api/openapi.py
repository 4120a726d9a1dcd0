"""``python -m weft.api.openapi``: docs/reference/openapi.json, the API's description. A test compares the page with this."""

from __future__ import annotations

import sys
from typing import Any

import msgspec

from weft.api import description
from weft.api.routes import ROUTES


def describe_api() -> dict[str, Any]:
    """The whole document."""
    return description.describe_api(ROUTES)


def render() -> str:
    """The document as it is checked in."""
    return msgspec.json.format(msgspec.json.encode(describe_api()), indent=2).decode() + "\n"


if __name__ == "__main__":
    sys.stdout.write(render())
