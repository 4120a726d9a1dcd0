"""The process that unpacks one layer: ``python -m weft.drivers.image.oci.unpack.worker PARENT FOLDER PACKING LIMITS``, the blob as
stdin.

The folder is its root from the start (``confinement.py``). It prints a dot now and then, and at its end one line of JSON: what was
made, or ``refused`` and why. What it leaves in the folder after that is its parent's to remove.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from weft.contracts.confinement.system_calls import NETWORK, PEERS, refuse_calls
from weft.contracts.confinement.unprivileged import drop_privileges, end_with
from weft.drivers.image.oci.unpack.confinement import confine
from weft.drivers.image.oci.unpack.entries import LayerRefused, Tree

PIECE_BYTES = 256 * 1024
BEAT_BYTES, BEAT_ENTRIES = 8 << 20, 256
_MOST_HEADER_BYTES = 1 << 20  # of a long name, or a pax header
_RATIO_FROM_BYTES = 64 << 20
_ZSTD_MEMORY_MIB = 128


class _Reads(Protocol):
    def read(self, size: int, /) -> bytes: ...


class Gunzip:
    """Reads what is packed by gzip, member after member."""

    def __init__(self, source: _Reads) -> None:
        self._source, self._left = source, b""
        self._inflate = zlib.decompressobj(wbits=31)
        self._begun = False

    def read(self, size: int, /) -> bytes:
        while True:
            if self._inflate.eof:
                rest = self._inflate.unused_data or self._source.read(PIECE_BYTES)
                if not rest.strip(b"\0"):
                    return b""
                self._inflate, self._left = zlib.decompressobj(wbits=31), rest
            packed = self._left or self._source.read(PIECE_BYTES)
            data = self._inflate.decompress(packed, size)
            self._left = self._inflate.unconsumed_tail
            if data:
                return data
            if not packed and not self._inflate.eof:
                if self._begun:
                    raise LayerRefused("it is truncated", "badLayer")
                return b""
            self._begun = True


class Meter:
    """The tar as it comes out: summed up, counted, and no more of it than is allowed."""

    def __init__(self, source: _Reads, most: int, packed: int, ratio: int, beat: Callable[[int], None]) -> None:
        self._source, self._beat = source, beat
        self._bound = min(most, max(_RATIO_FROM_BYTES, packed * ratio))
        self._why = f"more than {most} bytes" if self._bound == most else f"more than {ratio} times its packed size"
        self.sum, self.size = hashlib.sha256(), 0

    def read(self, size: int, /) -> bytes:
        data = self._source.read(size)
        self.sum.update(data)
        self.size += len(data)
        self.check(self.size)
        self._beat(len(data))
        return data

    def check(self, size: int) -> None:
        if size > self._bound:
            raise LayerRefused(f"it would unpack to {self._why}", "layerTooLarge")


class LayerEntry(tarfile.TarInfo):
    """A header as strangers wrote it: no error in it is passed over, and none of its extensions may be large."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Any:
        try:
            return super().fromtarfile(archive)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError, tarfile.SubsequentHeaderError) as problem:  # type: ignore[attr-defined]
            raise LayerRefused(f"it is not a tar file, or it is truncated: {problem}", "badLayer") from None

    def _proc_member(self, archive: tarfile.TarFile) -> Any:
        kinds = (
            tarfile.GNUTYPE_LONGNAME,
            tarfile.GNUTYPE_LONGLINK,
            tarfile.XHDTYPE,
            tarfile.XGLTYPE,
            tarfile.SOLARIS_XHDTYPE,
        )
        if self.size < 0 or (self.type in kinds and self.size > _MOST_HEADER_BYTES):
            raise LayerRefused(f"it has a header of {self.size} bytes")
        return super()._proc_member(archive)  # type: ignore[misc]


def unpack(source: _Reads, packed: int, limits: dict[str, int]) -> dict[str, Any]:
    """Make in the current root what the tar has. Raises LayerRefused, OSError."""
    done = [0, 0]

    def beat(size: int) -> None:
        done[0] += size
        if done[0] >= BEAT_BYTES or done[1] >= BEAT_ENTRIES:
            done[:] = [0, 0]
            os.write(1, b".")

    meter, tree, made, entries = Meter(source, limits["bytes"], packed, limits["ratio"], beat), Tree(beat), 0, 0
    with tarfile.open(
        fileobj=meter, mode="r|", bufsize=PIECE_BYTES, tarinfo=LayerEntry, errors="surrogateescape"
    ) as archive:  # type: ignore[call-overload]
        for entry in archive:
            archive.members = []  # it would remember them all
            entries += 1
            done[1] += 1
            if entries > limits["entries"]:
                raise LayerRefused(f"it has more than {limits['entries']} entries", "layerTooLarge")
            if entry.size < 0:
                raise LayerRefused(f"it has an entry of {entry.size} bytes")
            made += entry.size if entry.isreg() else 0
            meter.check(made)  # holes of sparse files are not in the tar
            tree.add(entry, archive.extractfile(entry) if entry.isreg() else None)
            beat(0)
    while meter.read(PIECE_BYTES):
        pass
    tree.close()
    return {
        "diff_id": f"sha256:{meter.sum.hexdigest()}",
        "bytes": made,
        "entries": entries,
        "dropped": tree.dropped,
        "opaque": sorted(tree.opaque),
        "implied": sorted(tree.implied),
    }


def _open(packing: str) -> _Reads:
    if packing == "plain":
        return sys.stdin.buffer
    if packing == "gzip":
        return Gunzip(sys.stdin.buffer)
    humble = partial(_give_up_rights, os.getpid())
    argv = ["zstd", "-dcq", f"--memory={_ZSTD_MEMORY_MIB}MB"]
    try:
        process = subprocess.Popen(
            argv, stdin=0, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, preexec_fn=humble, bufsize=0
        )
    except FileNotFoundError:
        raise LayerRefused("it is packed with zstd, which this node lacks", "noZstd") from None
    assert process.stdout is not None
    return process.stdout


def _give_up_rights(parent: int) -> None:
    drop_privileges(parent, {resource.RLIMIT_AS: 1 << 30, resource.RLIMIT_FSIZE: 0})
    refuse_calls(NETWORK, PEERS)


def main(folder: str, packing: str, limits: dict[str, int]) -> dict[str, Any]:
    packed = os.fstat(0).st_size
    try:
        source = _open(packing)
        confine(folder, limits["bytes"])
        return unpack(source, packed, limits)
    except LayerRefused as problem:
        return {"refused": problem.reason, "message": str(problem)}
    except MemoryError:
        return {"refused": "hostileLayer", "message": "its headers take more memory than they may"}
    except OSError as problem:
        name = str(problem.filename or "")[-120:].encode("ascii", "backslashreplace").decode()
        return {"errno": problem.errno, "message": f"{name}: {problem.strerror}" if name else str(problem.strerror)}
    except RecursionError:
        return {"refused": "badLayer", "message": "its folders are nested too deeply"}
    except (tarfile.TarError, zlib.error, ValueError, LookupError, OverflowError) as problem:
        return {"refused": "badLayer", "message": f"it can't be read: {str(problem)[:200]}"}


if __name__ == "__main__":
    end_with(int(sys.argv[1]))
    result = main(sys.argv[2], sys.argv[3], json.loads(sys.argv[4]))
    sys.stdout.write(f"\n{json.dumps(result)}\n")
    sys.stdout.flush()
