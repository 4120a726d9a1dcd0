"""A store in another process of this machine: calls and answers as frames on a unix socket."""

from weft.store.remote.client import RemoteStore
from weft.store.remote.server import StoreServer

__all__ = ["RemoteStore", "StoreServer"]
