"""Volumes whose files are encrypted: a part that a volume driver may have. Each key is a path of the passphrase, which is read
while a call lasts, and never kept."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from weft.contracts.driver.volume import VolumeFacts


class Encryption(Protocol):
    async def ensure(self, volume_id: str, *, size_bytes: int, key: str) -> VolumeFacts:
        """As the driver's ``ensure``, of an empty volume. Raises DriverFailed (``notEncrypted``) for a plain one."""

    async def grow(self, volume_id: str, size_bytes: int, *, key: str) -> VolumeFacts:
        """As the driver's ``grow``. Raises DriverFailed (``wrongKey``)."""


@runtime_checkable
class CanEncrypt(Protocol):
    @property
    def encryption(self) -> Encryption: ...
