"""A guest's console log on its node: QEMU appends to the file, and beside it stands how many bytes came before, here or on
earlier nodes."""

from __future__ import annotations

import os
from pathlib import Path

from weft.contracts.driver.runtime import Printed
from weft.drivers.linux.log_files import keep_end
from weft.drivers.runtime.qemu.translate import GuestPaths

END_OF_BOOT = "weft: up to here, what that machine printed as it booted"
_START = ".start"


def read_start(paths: GuestPaths) -> int:
    """How many bytes were printed before those in the log."""
    try:
        return int(paths.console_log.with_suffix(_START).read_text())
    except (FileNotFoundError, ValueError):
        return 0


def shorten(paths: GuestPaths, kept_bytes: int) -> None:
    """Keep the end of the log; what QEMU writes in this moment may be lost. Raises OSError."""
    dropped = keep_end(paths.console_log, kept_bytes)
    _write_start(paths, read_start(paths) + dropped)


def add_printed(paths: GuestPaths, printed: Printed) -> None:
    """Append what the log lacks of it; a log that ends before it begins is begun anew with it. Raises OSError."""
    paths.state.mkdir(parents=True, exist_ok=True)
    with open(paths.console_log, "ab", opener=open_private) as file:
        start, size = read_start(paths), file.tell()
        if printed.start > start + size:
            file.truncate(0)
            start, size = printed.start, 0
            file.write(printed.data)
            file.flush()
            _write_start(paths, start)
        else:
            file.write(printed.data[start + size - printed.start :])


def note_beginning(paths: GuestPaths, note: str, booted: Path | None) -> None:
    """Begin the log of a guest that doesn't boot with ``note``, and with what the machine printed as it booted that it begins from,
    if that was kept. Raises OSError."""
    printed = booted.read_bytes() if booted is not None and booted.exists() else b""
    paths.state.mkdir(parents=True, exist_ok=True)
    with open(paths.console_log, "ab", opener=open_private) as file:
        end = f"\r\n{END_OF_BOOT}\r\n".encode() if printed else b""
        file.write(f"{note}\r\n".encode() + printed + end)


def open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _write_start(paths: GuestPaths, start: int) -> None:
    paths.console_log.with_suffix(_START).write_text(str(start))
