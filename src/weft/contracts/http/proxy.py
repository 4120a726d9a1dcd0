"""The proxy that the environment names for a server."""

from __future__ import annotations

import urllib.request
from urllib.parse import urlsplit


def find_proxy(url: str) -> str:
    """The proxy's URL; "": the server itself is asked."""
    parts = urlsplit(url)
    if urllib.request.proxy_bypass(parts.netloc.rpartition("@")[2]):
        return ""
    proxy = urllib.request.getproxies().get(parts.scheme, "")
    return proxy if not proxy or "://" in proxy else f"http://{proxy}"
