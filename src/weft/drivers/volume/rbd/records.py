"""Records of what the pool's images stand on, and of its snapshots, in one object of the pool, ``weft-snapshots``.

A layer is an RBD snapshot with the layer's id as its name; a record names it ``IMAGE@LAYER``. A record is one value, written whole.
Where a record lacks something, no data is lost: RBD itself keeps what a clone stands on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

import msgspec

from weft.contracts.driver.layers import KeptDisk, KeptSnapshot
from weft.drivers.linux.ceph.programs import CephClient
from weft.objects.errors import DriverFailed, NotFound

OBJECT = "weft-snapshots"
_CHAIN, _KEPT, _CLAIM = "chain/", "kept/", "claim/"


class Chain(msgspec.Struct, frozen=True, omit_defaults=True):
    """The chain that an image stands on, bottom first: its own layers, above those of the image that it is a clone of."""

    layers: tuple[str, ...] = ()
    begun: str = ""  # a layer that is being made


class StoredDisk(msgspec.Struct, frozen=True, omit_defaults=True):
    layers: tuple[str, ...]  # the last one is the disk as it was
    size_bytes: int
    name: str = ""


class StoredSnapshot(msgspec.Struct, frozen=True, omit_defaults=True):
    uid: str
    disks: dict[str, StoredDisk]
    workload: str = ""
    taken_at: float = 0.0
    source: str = ""
    consistency: str = ""
    final: bool = False
    came: bool = False

    def list_layers(self) -> Iterator[str]:
        return (layer for disk in self.disks.values() for layer in disk.layers)

    def describe(self, id_: str, used_bytes: int = 0) -> KeptSnapshot:
        disks = {
            name: KeptDisk(tuple(map(name_layer, disk.layers)), disk.size_bytes, disk.name)
            for name, disk in self.disks.items()
        }
        return KeptSnapshot(
            *(id_, self.uid, disks),
            used_bytes=used_bytes,
            workload=self.workload,
            taken_at=self.taken_at,
            source=self.source,
            consistency=self.consistency,
            final=self.final,
            came=self.came,
        )


class Claim(msgspec.Struct, frozen=True):
    """Somebody writes into an image that holds points, for a layer to come."""

    image: str
    writer: str
    layer: str

    def name(self) -> str:
        return f"{_CLAIM}{self.image}/{self.writer}"


class Records(msgspec.Struct, frozen=True):
    """All of them at one moment."""

    chains: dict[str, Chain]  # by image
    kept: dict[str, StoredSnapshot]  # by id
    claims: tuple[Claim, ...] = ()

    def list_kept_layers(self, *, but: str = "") -> set[str]:
        return {layer for id_, one in self.kept.items() if id_ != but for layer in one.list_layers()}

    def list_unneeded(self, image: str, images: Iterable[str]) -> list[str]:
        """Layers of its chain that no snapshot ends with and that no other of ``images``, those of volumes, stands on."""
        chain = self.chains.get(image, Chain())
        if chain.begun:
            return []
        others = {layer for one in set(images) - {image} for layer in self.chains.get(one, Chain()).layers}
        tips = {disk.layers[-1] for one in self.kept.values() for disk in one.disks.values()}
        return [layer for layer in chain.layers if layer not in others and layer not in tips]

    def list_mergeable(self) -> list[str]:
        """See ``DiskCopies``. Ceph itself unites what snapshots hold, so it doesn't matter what is above."""
        needed = {layer for chain in self.chains.values() for layer in chain.layers}
        needed |= {disk.layers[-1] for one in self.kept.values() for disk in one.disks.values()}
        came = (layer for one in self.kept.values() if one.came for layer in one.list_layers())
        return [layer for layer in dict.fromkeys(came) if layer not in needed]


class RecordStore:
    """``has_points``: whether anything was taken in, as far as the last look tells."""

    def __init__(self, client: CephClient, pool: str) -> None:
        self._client, self._pool = client, pool
        self.has_points = True

    async def read(self) -> Records:
        """Raises DriverFailed."""
        try:
            found = read_values(await self._rados("listomapvals", OBJECT))
        except NotFound:
            self.has_points = False
            return Records({}, {})
        chains, kept, claims = {}, {}, list[Claim]()
        try:
            for key, value in found.items():
                if key.startswith(_CHAIN):
                    chains[key.removeprefix(_CHAIN)] = msgspec.json.decode(value, type=Chain)
                elif key.startswith(_KEPT):
                    kept[key.removeprefix(_KEPT)] = msgspec.json.decode(value, type=StoredSnapshot)
                elif key.startswith(_CLAIM):
                    claims.append(msgspec.json.decode(value, type=Claim))
        except msgspec.DecodeError as problem:
            raise DriverFailed(
                f"a record of the Ceph pool {self._pool} can't be read: {key}: {problem}",
                hint=f"see rados -p {self._pool} listomapvals {OBJECT}; until then its snapshots stay as they are",
                details={"step": "snapshot"},
            ) from problem
        self.has_points = any(one.came for one in kept.values())
        return Records(chains, kept, tuple(claims))

    async def write_chain(self, image: str, chain: Chain) -> None:
        if chain == Chain():
            await self._forget(f"{_CHAIN}{image}")
        else:
            await self._write(f"{_CHAIN}{image}", chain)

    async def keep(self, id_: str, snapshot: StoredSnapshot) -> None:
        await self._write(f"{_KEPT}{id_}", snapshot)

    async def drop(self, id_: str) -> None:
        await self._forget(f"{_KEPT}{id_}")

    async def write_claim(self, claim: Claim) -> None:
        await self._write(claim.name(), claim)

    async def drop_claim(self, claim: Claim) -> None:
        await self._forget(claim.name())

    async def _write(self, key: str, value: msgspec.Struct) -> None:
        text = json.dumps(msgspec.to_builtins(value), separators=(",", ":"))  # ASCII
        await self._rados("setomapval", OBJECT, key, text)

    async def _forget(self, key: str) -> None:
        """Absent is fine."""
        try:
            await self._rados("rmomapkey", OBJECT, key)
        except NotFound:
            return

    async def _rados(self, *words: str) -> str:
        return await self._client.run("rados", "-p", self._pool, *words)


def name_layer(layer: str) -> str:
    """Its id: what is behind the image's name."""
    return layer.rpartition("@")[2]


def name_image(layer: str) -> str:
    return layer.rpartition("@")[0]


def read_values(text: str) -> dict[str, bytes]:
    """Pure. What ``rados listomapvals`` prints: a key, the value's length, and the value as ``hexdump -C`` does; ``*`` stands for
    lines like the one before."""
    found: dict[str, bytes] = {}
    key, value = "", bytearray()
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith("value (") and line.endswith(" bytes) :"):
            length, value = int(line.split("(")[1].split()[0]), bytearray()
            repeats = False
            while len(value) < length:
                row = next(lines)
                if row == "*":
                    repeats = True
                    continue
                offset, cells = int(row[:8], 16), bytes.fromhex(row[8:].split("|")[0].replace(" ", ""))
                if repeats:
                    while len(value) < offset:
                        value += value[-16:]
                    repeats = False
                value += cells
            found[key] = bytes(value[:length])
        elif line:
            key = line
    return found
