"""The volume driver contract: disks by uid, images as their read-only base."""

from __future__ import annotations

from typing import Literal, Protocol, runtime_checkable

import msgspec


class RbdImage(msgspec.Struct, frozen=True):
    """An image in a Ceph pool, and how this node reaches it."""

    pool: str
    image: str
    conf: str  # path of the ceph.conf, which says where the user's keyring is
    user: str  # without "client."


class VolumeFacts(msgspec.Struct, frozen=True):
    id: str
    path: str  # of its file; of an RBD image rbd:POOL/IMAGE
    format: Literal["qcow2", "raw"]
    size_bytes: int
    used_bytes: int
    rbd: RbdImage | None = None  # it is one, and no file
    encrypted: bool = False


class PoolFacts(msgspec.Struct, frozen=True):
    id: str  # of the storage, the same from every node that sees it
    total_bytes: int
    free_bytes: int


class OsdFacts(msgspec.Struct, frozen=True):
    """One of the daemons that a Ceph pool's data lies with."""

    name: str
    total_bytes: int = 0
    used_bytes: int = 0
    # Milliseconds of what it did lately: write, read, replica (a write for another OSD), commit (its store's log).
    latency_ms: dict[str, float] = {}
    problem: str = ""  # why nothing is known of it


class VolumeDriver(Protocol):
    name: str

    async def ensure(
        self, volume_id: str, *, size_bytes: int, base: str | None = None, base_format: str = "qcow2"
    ) -> VolumeFacts:
        """Make the volume if it isn't there: empty, or a copy-on-write clone of image file ``base`` (then ``size_bytes``
        may not be smaller than the base; 0 means the base's). Half-made ones are never seen. Raises DriverFailed."""

    async def inspect(self, volume_id: str) -> VolumeFacts | None: ...

    async def grow(self, volume_id: str, size_bytes: int) -> VolumeFacts: ...

    async def remove(self, volume_id: str) -> None:
        """Absent is fine."""

    async def list(self) -> list[VolumeFacts]: ...


@runtime_checkable
class CanReceive(Protocol):
    """A volume's file may come from another node as it is."""

    def begin(self, volume_id: str) -> str:
        """The path to write it to; an earlier unfinished file is gone."""

    async def complete(
        self, volume_id: str, *, base: str | None = None, base_format: str = "qcow2", form: str = "qcow2"
    ) -> VolumeFacts:
        """Make the written file the volume: all of it, or the volume stays what it was. ``form`` is the format that the sender
        names, since a disk's own header can't be trusted. Raises InvalidInput for a file that is no disk of this driver,
        DriverFailed."""


class Encryption(Protocol):
    """Each key is a path of the passphrase, which is read while a call lasts, and never kept."""

    async def ensure(self, volume_id: str, *, size_bytes: int, key: str) -> VolumeFacts:
        """Make an empty volume like the driver's ``ensure``. Raises DriverFailed (``notEncrypted``) for a plain one."""

    async def grow(self, volume_id: str, size_bytes: int, *, key: str) -> VolumeFacts:
        """Grow a volume like the driver's ``grow``. Raises DriverFailed (``wrongKey``)."""


@runtime_checkable
class CanEncrypt(Protocol):
    """A volume's file may be encrypted."""

    @property
    def encryption(self) -> Encryption: ...


@runtime_checkable
class HasFiles(Protocol):
    """A volume may have a file system on it, which containers mount."""

    async def ensure_files(self, volume_id: str, *, size_bytes: int, owner: tuple[int, int] = (0, 0)) -> VolumeFacts:
        """The volume as a raw disk with an ext4 on all of it, whole, of at least that size, and unused: made if there is no
        volume or nothing on it (then ``owner`` owns its root folder), else what is there. A machine may use it as its disk
        afterwards. Raises InvalidInput (``notAFileSystem``) for a disk with something else on it, DriverFailed (``inUse``,
        ``noSpace``)."""


@runtime_checkable
class CanFence(Protocol):
    """Several nodes may have a volume open at once, and no lock keeps a node away that the server has given up."""

    async def fence(self, volume_id: str) -> list[str]:
        """Cut off for good every client that has the volume open, on any node: nothing of theirs is written from now on.
        Returns their addresses. Called before a guest begins with it. Raises DriverFailed: then it must not begin."""


@runtime_checkable
class HasOsds(Protocol):
    """Volumes lie with daemons, some of which may run on this node's machine."""

    def osds(self) -> list[OsdFacts]:
        """Those that do; blocks."""


@runtime_checkable
class HasPool(Protocol):
    """Volumes are in storage that other nodes may see too."""

    def pool(self) -> PoolFacts:
        """Blocks for as long as the storage does. Raises DriverFailed, OSError for storage that can't be used."""

    async def share(self, volume_id: str, other_id: str) -> VolumeFacts:
        """Give volume ``volume_id`` another name too; ``remove`` takes one name, and the data with the last. Raises
        DriverFailed."""


@runtime_checkable
class KeepsDisks(Protocol):
    """A disk may become a volume that needs nothing else of this node."""

    async def keep(
        self, volume_id: str, other_id: str, *, base: str | None = None, base_format: str = "qcow2"
    ) -> VolumeFacts:
        """Give what disk ``volume_id`` has the name of a volume too, which stands on no image, ``base``, and no layers any more;
        ``remove`` takes the former name. It may be repeated. No guest has the disk. Raises DriverFailed."""
