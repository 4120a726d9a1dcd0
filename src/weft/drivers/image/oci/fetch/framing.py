"""Frames between ``worker.py`` and its parent: a kind, a length, so many bytes."""

import struct

FRAME = struct.Struct("!cI")
PIECE_BYTES = 256 * 1024
GUARDED = "--reach="  # an argument of ``worker.py``
