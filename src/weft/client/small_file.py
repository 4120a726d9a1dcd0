"""Small files that a person names by a flag: a token, a key, a certificate."""

from __future__ import annotations

import errno
from pathlib import Path

MOST_CHARACTERS = 1 << 20


def read_small(path: Path) -> str:
    """Its text. Raises OSError, of a file that is larger as well, and UnicodeDecodeError."""
    with path.open() as file:  # a pipe, too; a device may have no end
        text = file.read(MOST_CHARACTERS + 1)
    if len(text) > MOST_CHARACTERS:
        raise OSError(errno.EFBIG, "it has more than a million characters", str(path))
    return text
