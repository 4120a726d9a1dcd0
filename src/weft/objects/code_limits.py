"""How much code a function may have. In a file of its own, since every command loads the kind and few read archives."""

from __future__ import annotations

MIB = 1024 * 1024
MOST_BYTES = 50 * MIB  # of the zip
MOST_UNPACKED_BYTES = 250 * MIB
MOST_MEMBERS = 20_000
MOST_DIRECTORY_BYTES = 4 * MIB
