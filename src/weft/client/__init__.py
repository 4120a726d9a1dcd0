"""How programs speak to weft: ``Client`` for the API."""

from weft.client.api import Client
from weft.client.context import Context, find_context
from weft.client.listing import Listing
from weft.client.watch import WatchEvent

__all__ = ["Client", "Context", "Listing", "WatchEvent", "find_context"]
