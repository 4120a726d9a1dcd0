"""The bytes of a repository, as docs/reference/backup-format.md describes them. Pure: keys and bytes in, bytes and values out."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import zstandard
from cryptography.exceptions import InvalidTag

from weft.backup.key import SEALED_EXTRA, Keys
from weft.objects.errors import BackupAltered

HEADER = "weft-backup"  # the object that is not encrypted
VERSION = 1
CHUNK = 64 << 10
ID_BYTES = 32
HOLE = bytes(ID_BYTES)  # the id of 64 KiB of zeros, which are never stored
ZEROS = bytes(CHUNK)
FRAME_CHUNKS = 16
FANOUT = CHUNK // ID_BYTES  # ids in one node of a disk's index, which is a chunk itself
PACK_BYTES = 64 << 20
PACK_CHUNKS = 16 << 10  # so that the index of a pack of very compressible chunks stays small

_LEVEL = 3
_FAST_LEVEL = 1  # for what resists: zstd stores such blocks as they are
_PROBES, _PROBE_BYTES = (8 << 10, 28 << 10, 48 << 10), 2 << 10
_RESISTS = 0.97
_PACK = b"WEFTPAK\x01"
_INDEX = b"WEFTIDX\x01"
_FRAME = struct.Struct(">HI")  # chunks, bytes of the sealed part
_RECORD = struct.Struct(">QIH")  # of a pack's index: offset, length of the whole frame, chunks
_FRAME_LIMIT = FRAME_CHUNKS * CHUNK + (64 << 10)
_MANIFEST_LIMIT = 64 << 20
PACK_START = len(_PACK)
FRAME_HEAD_LIMIT = _FRAME.size + FRAME_CHUNKS * ID_BYTES


class PackFrame(NamedTuple):
    """The place of one frame in its pack, and the ids of its chunks in order."""

    offset: int
    length: int
    ids: tuple[bytes, ...]


class DiskIndex(msgspec.Struct, frozen=True, kw_only=True):
    """The content of a disk: the root of a tree of ids, signed together with its counts."""

    name: str
    size: int  # bytes
    depth: int  # levels of nodes; 1: the root's ids are the disk's chunks
    stored_chunks: int  # of all its chunks those that aren't holes
    root: str  # hex
    mac: str  # hex


class BackupManifest(msgspec.Struct, frozen=True, kw_only=True):
    """One backup. Readers ignore fields that they don't know; what is added later has a default."""

    id: str
    lease: str  # of the writer
    created: float  # Unix seconds, by the writer's clock
    kind: str
    name: str
    disks: tuple[DiskIndex, ...]
    stored_bytes: int  # that this backup added to the repository
    keep_until: float | None = None  # locked until then
    spec: Any = None  # the object's, as it was
    labels: dict[str, str] = {}
    schema: int = 1

    @property
    def bytes(self) -> int:
        """The sizes of its disks together."""
        return sum(disk.size for disk in self.disks)

    def disk(self, name: str) -> DiskIndex | None:
        return next((disk for disk in self.disks if disk.name == name), None)


# Frames and packs


def pack_head() -> bytes:
    return _PACK


def resists_compression(chunk: bytes) -> bool:
    """Whether samples of a chunk are as long compressed as before, as of what is compressed or encrypted already. Any thread."""
    sample = b"".join([chunk[at : at + _PROBE_BYTES] for at in _PROBES])
    return len(zstandard.ZstdCompressor(level=_FAST_LEVEL).compress(sample)) > _RESISTS * len(sample)


def seal_frame(keys: Keys, pack: str, ids: Sequence[bytes], plain: bytes, resists: bool = False) -> bytes:
    """A frame as it lies in ``pack``: head, then the chunks compressed and sealed. Little effort is made with those that
    ``resists`` says to resist. Any thread."""
    level = _FAST_LEVEL if resists else _LEVEL
    packed = zstandard.ZstdCompressor(level=level, write_content_size=True).compress(plain)
    named = b"".join(ids)
    head = _FRAME.pack(len(ids), len(packed) + SEALED_EXTRA) + named
    return b"".join([head, *keys.seal_parts(f"pack {pack}", packed, head)])


def open_frame(keys: Keys, pack: str, frame: PackFrame, raw: bytes) -> bytes:
    """The chunks of a frame, one after the other. Raises BackupAltered. Any thread."""
    if len(raw) != frame.length or frame.length < _FRAME.size + len(frame.ids) * ID_BYTES:  # the pack was cut off
        raise frame_altered(pack, frame)
    head = _FRAME.pack(len(frame.ids), len(raw) - _FRAME.size - len(frame.ids) * ID_BYTES)
    named = b"".join(frame.ids)
    start = len(head) + len(named)
    try:
        if raw[:start] != head + named:
            raise ValueError("not the frame that the index names")
        packed = keys.unseal(f"pack {pack}", memoryview(raw)[start:], head + named)
        size = len(frame.ids) * CHUNK
        plain = zstandard.ZstdDecompressor(max_window_size=1 << 23).decompress(packed, max_output_size=size)
        if len(plain) != size:
            raise ValueError("not as long as its chunks")
    except (InvalidTag, ValueError, struct.error, zstandard.ZstdError) as error:
        raise frame_altered(pack, frame) from error
    return plain


def frame_altered(pack: str, frame: PackFrame) -> BackupAltered:
    return BackupAltered(
        f"pack {pack} is damaged at byte {frame.offset}: {len(frame.ids)} chunks can't be read",
        details={"pack": pack, "offset": frame.offset},
        hint="verify the others to see which of them need these: weft backup verify NAME; the next backup stores them again, "
        "if the data is still the same",
    )


def pack_cut(pack: str) -> BackupAltered:
    return BackupAltered(
        f"pack {pack} is damaged, and so is its index: it isn't known what it holds",
        details={"pack": pack},
        hint="bring the pack or its index back from a copy; or verify the backups, delete those that are damaged, then the file "
        f"packs/{pack}",
    )


def read_frame_head(raw: bytes, offset: int) -> PackFrame | None:
    """The frame that begins with ``raw`` at ``offset`` of its pack; None if that can't be one."""
    if len(raw) < _FRAME.size:
        return None
    count, sealed = _FRAME.unpack_from(raw)
    ids = raw[_FRAME.size : _FRAME.size + count * ID_BYTES]
    if not 1 <= count <= FRAME_CHUNKS or sealed > _FRAME_LIMIT or len(ids) != count * ID_BYTES:
        return None
    return PackFrame(offset, _FRAME.size + len(ids) + sealed, split_ids(ids))


def split_ids(ids: bytes) -> tuple[bytes, ...]:
    return tuple(ids[at : at + ID_BYTES] for at in range(0, len(ids), ID_BYTES))


# Indexes of packs


def encode_index(keys: Keys, pack: str, version: str, size: int, frames: Sequence[PackFrame]) -> bytes:
    """Encode what a pack of ``size`` bytes holds, signed; ``version`` is the pack's in a place that keeps versions."""
    name = version.encode()
    parts = [_INDEX, struct.pack(">QHI", size, len(name), len(frames)), name]
    for frame in frames:
        parts += [_RECORD.pack(frame.offset, frame.length, len(frame.ids)), *frame.ids]
    body = b"".join(parts)
    return body + keys.mac("index", pack.encode(), body)


def decode_index(keys: Keys, pack: str, raw: bytes) -> tuple[str, int, list[PackFrame]]:
    """Version, size and frames of a pack. Raises BackupAltered."""
    body, mac = raw[:-32], raw[-32:]
    if not body.startswith(_INDEX) or keys.mac("index", pack.encode(), body) != mac:
        raise BackupAltered(
            f"the index of pack {pack} is damaged",
            details={"pack": pack},
            hint="its chunks are read from the pack itself; the next clean-up writes the index again",
        )
    size, name, count = struct.unpack_from(">QHI", body, len(_INDEX))
    at = len(_INDEX) + struct.calcsize(">QHI")
    version = body[at : at + name].decode()
    at += name
    frames = []
    for _ in range(count):
        offset, length, chunks = _RECORD.unpack_from(body, at)
        at += _RECORD.size
        frames.append(PackFrame(offset, length, split_ids(body[at : at + chunks * ID_BYTES])))
        at += chunks * ID_BYTES
    return version, size, frames


# Manifests


def sign_disk(keys: Keys, backup: str, disk: DiskIndex) -> DiskIndex:
    return msgspec.structs.replace(disk, mac=_disk_mac(keys, backup, disk).hex())


def check_disk(keys: Keys, backup: str, disk: DiskIndex) -> None:
    """Raises BackupAltered unless this index is that backup's."""
    if _disk_mac(keys, backup, disk).hex() != disk.mac:
        raise BackupAltered(
            f"the index of disk {disk.name} in backup {backup} is damaged",
            details={"backup": backup, "disk": disk.name},
            hint="restore the disk from another backup",
        )


def _disk_mac(keys: Keys, backup: str, disk: DiskIndex) -> bytes:
    counts = struct.pack(">QHQ", disk.size, disk.depth, disk.stored_chunks)
    return keys.mac("disk", backup.encode(), disk.name.encode(), counts, bytes.fromhex(disk.root))


def encode_manifest(keys: Keys, manifest: BackupManifest) -> bytes:
    plain = zstandard.ZstdCompressor(level=_LEVEL).compress(msgspec.json.encode(manifest))
    return keys.seal(f"backup {manifest.id}", plain)


def decode_manifest(keys: Keys, backup: str, raw: bytes) -> BackupManifest:
    """The manifest of a backup. Raises BackupAltered."""
    try:
        plain = keys.unseal(f"backup {backup}", raw)
        text = zstandard.ZstdDecompressor().decompress(plain, max_output_size=_MANIFEST_LIMIT)
        manifest = msgspec.json.decode(text, type=BackupManifest)
        if manifest.id != backup:
            raise ValueError("another backup's")
    except (InvalidTag, ValueError, zstandard.ZstdError) as error:  # msgspec's errors are ValueErrors
        raise manifest_altered(backup) from error
    for disk in manifest.disks:
        check_disk(keys, backup, disk)
    return manifest


def manifest_altered(backup: str) -> BackupAltered:
    return BackupAltered(
        f"the manifest of backup {backup} is damaged",
        details={"backup": backup},
        hint="restore another backup; this one's data can't be found without it",
    )
