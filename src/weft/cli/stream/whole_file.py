"""Files that are written here: what is there is replaced only if people say so; those from a guest or a backup are whole under
their name, or not there."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from weft.objects.errors import InvalidInput

ANY_MODE = 0o777  # without the set-user-ID bits, which a guest doesn't hand out here


def refuse_existing(path: Path, flag: str, *, force: bool) -> None:
    """Raises InvalidInput for a file that would be replaced. A pipe or a device is written to."""
    if path.is_file() and not force:
        raise InvalidInput(
            f"{flag}: {path} exists already", field=flag, hint="give another name, or --force to replace it"
        )


@contextmanager
def written_whole(path: Path, mode: int) -> Iterator[int]:
    """A descriptor to write to. What is at ``path`` is replaced once all is written, and keeps its own mode; a new file has
    ``mode``, less the umask, from its first byte on. Raises OSError."""
    work = path.with_name(
        f".{secrets.token_hex(8)}.weft-part"
    )  # nothing of the name, which may be as long as names can be
    descriptor = os.open(work, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode & ANY_MODE)
    try:
        try:
            with suppress(FileNotFoundError):
                former = path.lstat().st_mode
                if stat.S_ISREG(former):
                    os.fchmod(descriptor, former & ANY_MODE)
            yield descriptor
        finally:
            os.close(descriptor)
        work.replace(path)
    except BaseException:
        work.unlink(missing_ok=True)
        raise
