"""The store for several servers: the contract over an etcd cluster (v3.4 or newer). Needs the extra ``weft[etcd]``."""

from __future__ import annotations

from weft.store.etcd.connection import EtcdTls
from weft.store.etcd.store import EtcdStore

__all__ = ["EtcdStore", "EtcdTls"]
