"""A disk's index: a tree of ids. Its nodes are chunks like any other, so what two backups share is stored once.

A node is 2048 ids. Its own id is keyed and of its content, so the signed root vouches for every chunk of the disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from weft.backup.format import CHUNK, FANOUT, HOLE, ID_BYTES, ZEROS, DiskIndex
from weft.backup.key import Keys
from weft.objects.errors import BackupAltered, InvalidInput

ReadChunk = Callable[[bytes], bytes]
MAX_DEPTH = 6


def count_chunks(size: int) -> int:
    return -(-size // CHUNK)


def depth_of(size: int) -> int:
    depth, nodes = 1, -(-count_chunks(size) // FANOUT)
    while nodes > 1:
        depth, nodes = depth + 1, -(-nodes // FANOUT)
    return depth


class Tree:
    """Reads an index. Nodes that are read are checked against their ids."""

    def __init__(self, keys: Keys, read: ReadChunk, disk: DiskIndex) -> None:
        if disk.depth != depth_of(disk.size) or disk.depth > MAX_DEPTH:
            raise _damaged(disk.root)
        self._keys, self._read, self._disk = keys, read, disk
        self._leaves = b""
        self._last = (HOLE, ZEROS)  # the node that was read last, with its id

    def leaves(self) -> bytearray:
        """The ids of all nodes of the lowest level, in order."""
        if not self._leaves:
            self._leaves = bytes(self._read_leaves())
        return bytearray(self._leaves)

    def _read_leaves(self) -> bytearray:
        row = bytearray(bytes.fromhex(self._disk.root))
        for _ in range(self._disk.depth - 1):
            row = bytearray().join(self.node(bytes(row[at : at + ID_BYTES])) for at in range(0, len(row), ID_BYTES))
        return row[: -(-count_chunks(self._disk.size) // FANOUT) * ID_BYTES]

    def node(self, id_: bytes) -> bytes:
        """The ids in a node. Raises BackupAltered."""
        if id_ == HOLE:
            return ZEROS
        there, node = self._last
        if there == id_:
            return node
        node = self._read(id_)
        if self._keys.node_id(node) != id_:
            raise _damaged(id_.hex())
        self._last = id_, node
        return node

    def ids(self, first: int, count: int) -> Iterator[bytes]:
        """The ids of ``count`` chunks from chunk ``first``; holes are zero."""
        at, end = first, min(first + count, count_chunks(self._disk.size))
        leaves = self.leaves()
        while at < end:
            leaf = at // FANOUT
            node = self.node(bytes(leaves[leaf * ID_BYTES : (leaf + 1) * ID_BYTES]))
            last = min(end, (leaf + 1) * FANOUT)
            for number in range(at - leaf * FANOUT, last - leaf * FANOUT):
                yield node[number * ID_BYTES : (number + 1) * ID_BYTES]
            at = last

    def walk(self, enter: Callable[[bytes], bool]) -> Iterator[bytes]:
        """Ids of chunks of data, node by node. ``enter`` hears each node's id first, and may skip what is below it."""
        row = [bytes.fromhex(self._disk.root)]
        for level in reversed(range(self._disk.depth)):
            below: list[bytes] = []
            for id_ in row:
                if id_ == HOLE or not enter(id_):
                    continue
                node = self.node(id_)
                found = (node[at : at + ID_BYTES] for at in range(0, CHUNK, ID_BYTES))
                if level == 0:
                    yield from (child for child in found if child != HOLE)
                else:
                    below += (child for child in found if child != HOLE)
            row = below


class TreeBuilder:
    """Writes an index: ids come in order, all others stay as they were in ``old``."""

    def __init__(
        self, size: int, store: Callable[[bytes], bytes], old: Tree | None, old_size: int, old_stored: int
    ) -> None:
        self._size, self._store, self._old = size, store, old
        self._leaves = old.leaves() if old else bytearray()
        wanted = -(-count_chunks(size) // FANOUT) * ID_BYTES
        self.stored_chunks = old_stored
        self._leaf, self._node = -1, bytearray()
        dropped = self._leaves[wanted:]
        if old:
            for at in range(0, len(dropped), ID_BYTES):
                self.stored_chunks -= _count(old.node(bytes(dropped[at : at + ID_BYTES])))
        self._leaves = self._leaves[:wanted] + bytes(max(0, wanted - len(self._leaves)))
        self._cut = count_chunks(size) if size < old_size else None

    def set(self, chunk: int, id_: bytes) -> None:
        leaf, place = divmod(chunk, FANOUT)
        if leaf != self._leaf:
            self._close()
            self._open(leaf)
        at = place * ID_BYTES
        self.stored_chunks += (id_ != HOLE) - (self._node[at : at + ID_BYTES] != HOLE)
        self._node[at : at + ID_BYTES] = id_

    def finish(self) -> tuple[int, str]:
        """Depth and root."""
        if self._cut is not None and self._cut % FANOUT:  # the disk shrank: what lay behind its new end is gone
            leaf, place = divmod(self._cut, FANOUT)
            if leaf != self._leaf:
                self._close()
                self._open(leaf)
            tail = place * ID_BYTES
            self.stored_chunks -= _count(self._node[tail:])
            self._node[tail:] = bytes(CHUNK - tail)
        self._close()
        row, depth = self._leaves, 1
        while len(row) > ID_BYTES:
            nodes = (bytes(row[at : at + CHUNK]).ljust(CHUNK, b"\0") for at in range(0, len(row), CHUNK))
            row, depth = bytearray().join(self._put(node) for node in nodes), depth + 1
        return depth, bytes(row or HOLE).hex()

    def _open(self, leaf: int) -> None:
        if leaf < self._leaf:
            raise InvalidInput("changes come in the order of the disk", field="changes", hint="sort them by offset")
        id_ = bytes(self._leaves[leaf * ID_BYTES : (leaf + 1) * ID_BYTES])
        self._leaf, self._node = leaf, bytearray(self._old.node(id_) if self._old else ZEROS)

    def _close(self) -> None:
        if self._leaf >= 0:
            at = self._leaf * ID_BYTES
            self._leaves[at : at + ID_BYTES] = self._put(bytes(self._node))

    def _put(self, node: bytes) -> bytes:
        return HOLE if node == ZEROS else self._store(node)


def _count(node: bytes | bytearray) -> int:
    return sum(node[at : at + ID_BYTES] != HOLE for at in range(0, len(node), ID_BYTES))


def _damaged(root: str) -> BackupAltered:
    return BackupAltered(
        f"the index of a disk is damaged at node {root[:16]}",
        details={"chunk": root},
        hint="restore the disk from another backup",
    )
