"""Version of a node's own facts in the store: a request may arrive late, after a newer one, at this API server or another.

A node numbers its reports, from the start of each process of its agent. The number is stored with the facts, in the same commit, so
it says what is there whichever API server wrote it. A report that is older than the stored one of the same process is ignored.
Reports of two processes can't be ordered, so each answer names the version that counts, and a node with another one sends its facts
again.
"""

from __future__ import annotations

import msgspec

from weft.objects.envelope import Envelope, decode_part

NONE = "none.0"  # a version that no agent has: it sends all again


class _Numbered(msgspec.Struct):
    sequence: str = ""


def find_version(node: Envelope) -> str:
    """The version of the facts in the node's report; ``NONE`` if nobody knows."""
    return decode_part(node.report, _Numbered).sequence or NONE


def is_late(stored: str, version: str) -> bool:
    """Whether ``stored`` is a newer version, of the same process. A version is ``PROCESS.NUMBER``."""
    life, _, number = version.rpartition(".")
    stored_life, _, newest = stored.rpartition(".")
    return bool(life) and life == stored_life and is_numbered(version) and int(number) < int(newest)


def is_numbered(version: str) -> bool:
    """Whether the agent numbers its reports."""
    return version.rpartition(".")[2].isdecimal()
