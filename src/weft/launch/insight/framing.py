"""How the controllers and the process that does the arithmetic of profiles speak: a length, and so many bytes."""

from __future__ import annotations

import struct

LENGTH = struct.Struct("<Q")
MOST_BYTES = 256 << 20
