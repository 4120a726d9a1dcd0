"""The store for several servers: the contract over an etcd cluster (v3.4 or newer). Needs the extra ``weft[etcd]``."""

from __future__ import annotations

import os

# Its hooks would run, and complain on standard error, in every program that this process starts.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

from weft.store.etcd.connection import EtcdTls
from weft.store.etcd.refill import EtcdRefill
from weft.store.etcd.store import EtcdStore

__all__ = ["EtcdRefill", "EtcdStore", "EtcdTls"]
