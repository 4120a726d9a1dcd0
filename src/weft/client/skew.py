"""Whether this weft and a server's are of one release: then each knows all that the other says. Pure."""

from __future__ import annotations

import weft

HEADER = "weft-version"  # of every answer of a server's


def describe_skew(server: str) -> str | None:
    """What to tell of a server of version ``server``; None when nothing is to be told."""
    if server.split(".")[:2] == weft.__version__.split(".")[:2]:
        return None
    return f"this weft is {weft.__version__}, the server {server}: what only the newer one knows is left as it is"
