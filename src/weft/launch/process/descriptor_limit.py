"""Each connection is a descriptor: a process that many connect to may have as many as it is allowed to ask for."""

from __future__ import annotations

import resource


def raise_descriptor_limit() -> None:
    """Raise this process's own limit as far as the machine lets it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
