"""A file of saved memory that can go to another node: at its end, behind what QEMU reads, stands the machine that it is of."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import msgspec

from weft.contracts.driver.migration import MigratingGuest

_END = struct.Struct(">QQ8s")  # bytes of memory, bytes of the machine's description, and a mark
_MARK = b"weft-vm1"
_MOST_BYTES = 1 << 20  # of the description


def append_machine(path: Path, guest: MigratingGuest) -> None:
    """Raises OSError."""
    described = msgspec.json.encode(guest)
    with path.open("ab") as file:
        file.write(described + _END.pack(file.tell(), len(described), _MARK))


def read_machine(path: Path) -> MigratingGuest | None:
    """None for a file that isn't whole, or was saved without a description."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _END.size))
            memory, length, mark = _END.unpack(file.read(_END.size))
            if mark != _MARK or length > _MOST_BYTES or memory + length + _END.size != size:
                return None
            file.seek(memory)
            return msgspec.json.decode(file.read(length), type=MigratingGuest)
    except (OSError, struct.error, msgspec.DecodeError):
        return None
