"""Places of a store's things in etcd, under its prefix."""

from __future__ import annotations


class Places:
    """``entries`` is the folder of the entries (its bare name is a mark that each opening writes), ``leases`` that of leases,
    ``marks`` that of idempotency keys, by hour. ``base`` is how many
    revisions the store's history had before it came here. While ``refilling`` is there, the entries are no store's."""

    def __init__(self, prefix: str) -> None:
        self.entries = f"{prefix}/o".encode()
        self.leases = f"{prefix}/l/".encode()
        self.marks = f"{prefix}/i/".encode()
        self.epoch = f"{prefix}/epoch".encode()
        self.base = f"{prefix}/base".encode()
        self.refilling = f"{prefix}/refilling".encode()

    def of_key(self, key: str) -> bytes:
        """The place of the entry ``key``."""
        return self.entries + key.encode()
