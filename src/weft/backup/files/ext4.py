"""Reads ext2, ext3 and ext4, and writes nothing: directories, files, symbolic links, with the journal's newest metadata.

Source: Linux, Documentation/filesystems/ext4. Every number in it is a stranger's: it is checked before it is used, and each walk
has an end (``MOST_…``) whatever the file system says. Raises DriverFailed (``fileSystemDamaged``) for what contradicts itself.
"""

from __future__ import annotations

import stat
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Iterator

import msgspec

from weft.backup.files.journal import Overlay, read_journal
from weft.backup.files.partitions import Read
from weft.objects.errors import DriverFailed

ROOT_INODE = 2
MOST_ENTRIES = 200_000  # of one directory
MOST_EXTENTS = 2_000_000  # of one file
MOST_NODES, MOST_DEPTH = 50_000, 5  # of a tree of extents
MOST_DIRECTORY_BYTES = 1 << 30
STEP = 1 << 20
_COMPRESSED, _RECOVER, _JOURNAL_DEVICE, _META_GROUPS, _HAS_64, _ENCRYPTED = 0x1, 0x4, 0x8, 0x10, 0x80, 0x10000
_KNOWN = 0x2 | _RECOVER | _META_GROUPS | 0x40 | _HAS_64 | 0x100 | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x8000 | 0x20000
_EXTENTS, _INLINE = 0x80000, 0x10000000
_EXTENT_MAGIC = 0xF30A
_ATTRIBUTES = 0xEA020000


class Run(msgspec.Struct, frozen=True):
    """Neighbouring blocks of a file, in blocks."""

    logical: int
    count: int
    physical: int  # 0: they read as zeroes


class Inode(msgspec.Struct, frozen=True):
    number: int
    mode: int
    size: int
    modified: int  # seconds since 1970
    flags: int
    body: bytes  # where its extents, blocks or content begin
    attributes: bytes  # behind its fixed part
    owner: int = 0
    group: int = 0
    links: int = 1  # names that it has

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_link(self) -> bool:
        return stat.S_ISLNK(self.mode)


class FileSystem:
    """One on a part of a disk: ``read`` reads that part, which has ``size`` bytes."""

    def __init__(self, read: Read, size: int) -> None:
        self._read, self._size = read, size
        head = self._bytes(1024, 1024)
        if head[56:58] != b"\x53\xef":
            raise damaged("there is no ext4 file system")
        shift = _u32(head, 24)
        if shift > 6:
            raise damaged("its block size is impossible")
        self.block_size = 1024 << shift
        self._incompatible = _u32(head, 96)
        if unknown := self._incompatible & ~_KNOWN:
            raise damaged(f"it uses features that are not read here (0x{unknown:x})")
        self._first_block, self._per_group = _u32(head, 20), _u32(head, 32)
        self._inodes, self._inodes_per_group = _u32(head, 0), _u32(head, 40)
        self._inode_size = struct.unpack_from("<H", head, 88)[0] if _u32(head, 76) else 128
        wide = bool(self._incompatible & _HAS_64)
        self._descriptor_size = struct.unpack_from("<H", head, 254)[0] if wide else 32
        if not self._inodes_per_group or not self._per_group or not 128 <= self._inode_size <= self.block_size:
            raise damaged("its superblock is impossible")
        if not 32 <= self._descriptor_size <= self.block_size:
            raise damaged("its superblock is impossible")
        self._first_meta = _u32(head, 260)
        self._overlay, self._overlaid, self._journal = Overlay(), list[int](), list[Run]()
        self._journal_inode = _u32(head, 224)
        if self._incompatible & _RECOVER and self._journal_inode:
            self._take_journal(self._journal_inode)

    @property
    def is_replayed(self) -> bool:
        """Whether newest metadata was taken from the journal."""
        return bool(self._overlaid)

    def list_journal(self) -> list[tuple[int, int]]:
        """List the places of what was written to its journal: start and length in bytes, in the order of the disk. Its first block,
        which says what it is, is not part of that."""
        runs = self._runs(self.inode(self._journal_inode)) if self._journal_inode else ()
        found = list[tuple[int, int]]()
        for run in sorted((run for run in runs if run.physical), key=lambda run: run.physical):
            skipped = 1 if run.logical == 0 else 0
            start, length = (run.physical + skipped) * self.block_size, (run.count - skipped) * self.block_size
            if found and sum(found[-1]) == start:
                found[-1] = found[-1][0], found[-1][1] + length
            elif length:
                found.append((start, length))
        return found

    def inode(self, number: int) -> Inode:
        if not 0 < number <= self._inodes:
            raise damaged(f"there is no inode {number}")
        group, index = divmod(number - 1, self._inodes_per_group)
        at = self._find_table(group) * self.block_size + index * self._inode_size
        raw = self._patched(at, self._inode_size)
        size = _u32(raw, 4) | (_u32(raw, 108) << 32 if stat.S_ISREG(struct.unpack_from("<H", raw)[0]) else 0)
        extra = struct.unpack_from("<H", raw, 128)[0] if self._inode_size > 128 else 0
        return Inode(
            number,
            struct.unpack_from("<H", raw)[0],
            size,
            _u32(raw, 16),
            _u32(raw, 32),
            raw[40:100],
            raw[128 + extra :] if extra <= self._inode_size - 128 else b"",
            _u16(raw, 2) | _u16(raw, 120) << 16,
            _u16(raw, 24) | _u16(raw, 122) << 16,
            _u16(raw, 26),
        )

    def read_file(self, inode: Inode) -> Iterator[bytes]:
        """Its content, in pieces of at most STEP bytes."""
        if inode.flags & _INLINE:
            yield self._inline(inode)
            return
        at = 0
        for run in self._runs(inode):
            start = run.logical * self.block_size
            if start >= inode.size:
                break
            yield from _zeroes(start - at)
            end = min(start + run.count * self.block_size, inode.size)
            for offset in range(start, end, STEP):
                length = min(STEP, end - offset)
                if run.physical:
                    yield self._patched(run.physical * self.block_size + offset - start, length)
                else:
                    yield bytes(length)
            at = max(at, end)
        yield from _zeroes(inode.size - at)

    def read_link(self, inode: Inode) -> bytes:
        if inode.size < 60 and not inode.flags & _INLINE:
            return inode.body[: inode.size]
        if inode.size > 4096:
            raise damaged("a symbolic link is longer than 4096 bytes")
        return b"".join(self.read_file(inode))[: inode.size]

    def list_directory(self, inode: Inode) -> Iterator[tuple[bytes, int]]:
        """Name and inode of each entry but ``.`` and ``..``."""
        if inode.size > MOST_DIRECTORY_BYTES:
            raise damaged("a directory is larger than 1 GiB")
        count = 0
        for block in self._directory_blocks(inode):
            for name, number in _read_entries(block):
                count += 1
                if count > MOST_ENTRIES:
                    raise damaged(f"a directory has more than {MOST_ENTRIES} entries")
                yield name, number

    def find(self, inode: Inode, name: bytes) -> Inode | None:
        return next((self.inode(number) for found, number in self.list_directory(inode) if found == name), None)

    def _directory_blocks(self, inode: Inode) -> Iterator[bytes]:
        if inode.flags & _INLINE:
            content = self._inline(inode)
            yield content[4:60]  # behind the inode of its parent
            yield content[60:]
            return
        for piece in self.read_file(inode):
            for at in range(0, len(piece), self.block_size):
                yield piece[at : at + self.block_size]

    def _inline(self, inode: Inode) -> bytes:
        """Read what lies in the inode itself: the rest is the extended attribute system.data."""
        rest, raw = b"", inode.attributes
        if len(raw) >= 4 and _u32(raw, 0) == _ATTRIBUTES:
            at = 4
            while at + 16 <= len(raw) and any(raw[at : at + 4]):
                length, index, offset = raw[at], raw[at + 1], struct.unpack_from("<H", raw, at + 2)[0]
                size = _u32(raw, at + 8)
                if index == 7 and raw[at + 16 : at + 16 + length] == b"data":
                    rest = raw[4 + offset : 4 + offset + size]
                at += 16 + (length + 3) // 4 * 4
        return (inode.body + rest)[: inode.size] if not inode.is_directory else inode.body + rest

    def _runs(self, inode: Inode) -> Iterator[Run]:
        """Its blocks in the order of the file."""
        if inode.flags & _EXTENTS:
            last = -1
            for count, run in enumerate(self._walk_extents(inode.body, MOST_DEPTH, [MOST_NODES])):
                if run.logical <= last or count > MOST_EXTENTS:
                    raise damaged("the extents of a file are out of order")
                last = run.logical + run.count - 1
                yield run
            return
        numbers = struct.unpack("<15I", inode.body)
        wanted = -(-inode.size // self.block_size)
        for logical, physical in enumerate(self._list_blocks(numbers)):
            if logical >= wanted:
                return
            yield Run(logical, 1, physical)

    def _walk_extents(self, node: bytes, depth_left: int, nodes_left: list[int]) -> Iterator[Run]:
        magic, entries, _, depth = struct.unpack_from("<4H", node)
        nodes_left[0] -= 1
        if magic != _EXTENT_MAGIC or depth > depth_left or nodes_left[0] < 0 or 12 + 12 * entries > len(node):
            raise damaged("the extents of a file can't be read")
        for at in range(12, 12 + 12 * entries, 12):
            if depth:
                low, high = struct.unpack_from("<IH", node, at + 4)
                yield from self._walk_extents(self._block(low | high << 32), depth - 1, nodes_left)
            else:
                logical, count, high, low = struct.unpack_from("<IHHI", node, at)
                written = count <= 32768
                yield Run(logical, count if written else count - 32768, (low | high << 32) if written else 0)

    def _list_blocks(self, numbers: tuple[int, ...]) -> Iterator[int]:
        yield from numbers[:12]
        for level, number in enumerate(numbers[12:], 1):
            yield from self._indirect(number, level)

    def _indirect(self, number: int, level: int) -> Iterator[int]:
        per_block = self.block_size // 4
        if not number:
            for _ in range(per_block**level):
                yield 0
            return
        for one in struct.unpack(f"<{per_block}I", self._block(number)):
            if level == 1:
                yield one
            else:
                yield from self._indirect(one, level - 1)

    def _find_table(self, group: int) -> int:
        """The first block of a group's inodes."""
        per_block = self.block_size // self._descriptor_size
        index, place = divmod(group, per_block)
        if self._incompatible & _META_GROUPS and index >= self._first_meta:
            first = index * per_block * self._per_group + self._first_block
            block = first + (1 if self._has_super(index * per_block) else 0)
        else:
            block = self._first_block + 1 + index
        raw = self._patched(block * self.block_size + place * self._descriptor_size, self._descriptor_size)
        high = _u32(raw, 40) if self._descriptor_size >= 64 else 0
        return _u32(raw, 8) | high << 32

    def _has_super(self, group: int) -> bool:
        """Whether a copy of the superblock begins the group (sparse_super)."""
        if group <= 1:
            return True
        for base in (3, 5, 7):
            power = base
            while power < group:
                power *= base
            if power == group:
                return True
        return False

    def _take_journal(self, number: int) -> None:
        self._journal = list(self._runs(self.inode(number)))
        starts = [run.logical for run in self._journal]

        def read(block: int) -> bytes:
            found = bisect_right(starts, block) - 1
            run = self._journal[found] if found >= 0 else Run(0, 0, 0)
            if not run.physical or block >= run.logical + run.count:
                raise damaged("its journal has a hole")
            return self._bytes((run.physical + block - run.logical) * self.block_size, self.block_size)

        overlay = read_journal(read, self.block_size)
        self._read_journal, self._overlay, self._overlaid = read, overlay, sorted(overlay.blocks)

    def _block(self, number: int) -> bytes:
        return self._patched(number * self.block_size, self.block_size)

    def _patched(self, offset: int, length: int) -> bytes:
        """Read the bytes as they are once the journal is applied."""
        data = self._bytes(offset, length)
        if not self._overlaid:
            return data
        first, last = offset // self.block_size, (offset + length - 1) // self.block_size
        patched = bytearray(data)
        for block in self._overlaid[bisect_left(self._overlaid, first) : bisect_right(self._overlaid, last)]:
            new, at = self._overlay.apply(block, self._read_journal), block * self.block_size - offset
            begin, end = max(0, at), min(length, at + self.block_size)
            patched[begin:end] = new[begin - at : end - at]
        return bytes(patched)

    def _bytes(self, offset: int, length: int) -> bytes:
        if offset < 0 or offset + length > self._size:
            raise damaged("it points beyond the end of its disk")
        return self._read(offset, length)


def _read_entries(block: bytes) -> Iterator[tuple[bytes, int]]:
    at = 0
    while at + 8 <= len(block):
        number, length, name_length = struct.unpack_from("<IHB", block, at)
        length = 65536 if length in (0, 65535) and len(block) == 65536 else length
        if length < 8 or at + length > len(block) or 8 + name_length > length:
            return  # the rest of the block is no list of entries
        name = block[at + 8 : at + 8 + name_length]
        if number and name not in (b".", b"..", b""):
            yield name, number
        at += length


def _zeroes(count: int) -> Iterator[bytes]:
    while count > 0:
        yield bytes(min(STEP, count))
        count -= STEP


def _u16(data: bytes, at: int) -> int:
    return int(struct.unpack_from("<H", data, at)[0])


def _u32(data: bytes, at: int) -> int:
    return int(struct.unpack_from("<I", data, at)[0])


def damaged(what: str) -> DriverFailed:
    return DriverFailed(f"the file system can't be read: {what}", reason="fileSystemDamaged")
