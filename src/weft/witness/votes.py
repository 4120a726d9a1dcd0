"""The witness's file: which site is primary for each group, as it last promised or granted. It is written durably before an answer
that depends on it is sent, so a process that is killed at any moment has told nobody what isn't there."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path

import msgspec

from weft.contracts.durable_file import write_durably
from weft.failover.witness import VoteRecord
from weft.objects.errors import Unavailable

MOST_FILE_BYTES = 40 << 20  # of as many groups as all sites may have, with the longest names


class Votes(msgspec.Struct, frozen=True):
    epoch: str  # random, and another for a witness that began without a file
    records: dict[str, VoteRecord] = {}  # by group


def read_votes(path: Path) -> Votes:
    """Read what the file has; without a file a new history. Raises Unavailable for a damaged one."""
    try:
        with path.open("rb") as file:
            text = file.read(MOST_FILE_BYTES + 1)
        if len(text) > MOST_FILE_BYTES:
            raise ValueError
        return msgspec.json.decode(text, type=Votes)
    except FileNotFoundError:
        votes = Votes(secrets.token_hex(16))
        write_votes(path, votes.epoch, {})
        return votes
    except (ValueError, msgspec.DecodeError, OSError) as problem:
        raise Unavailable(
            f"{path} can't be read: {type(problem).__name__}",
            hint="rename it and start again: a witness without a file grants nothing until both sites have spoken",
        ) from problem


def write_votes(path: Path, epoch: str, records: Mapping[str, VoteRecord]) -> None:
    """Raises Unavailable, and leaves what was there."""
    try:
        write_durably(path, msgspec.json.encode(Votes(epoch, dict(records))))
    except OSError as problem:
        raise Unavailable(f"{path} can't be written: {problem.strerror or problem}", hint="give it space") from problem
