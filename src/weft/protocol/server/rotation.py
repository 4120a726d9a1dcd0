"""The rotation of the key that seals secrets: its record in the store, what servers tell each other, and what people are shown.

The record never has a key, only ids of keys. It stays when the rotation is done: it says which key the fabric seals with. Pure."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from weft.objects.identity import FABRIC

SEAL = "seal"
PARTS = (SEAL,)  # what rotates
PATH = "/v1/rotations"
KEYS_PATH = "/v1/servers:seal-keys"
MOST_UNOPENED = 20  # names
RECORDS = f"/rotation/{FABRIC}/"  # the store's prefix
# spread: servers get the new key, which opens. switch: it seals. reseal: what the former sealed is sealed again. drop: servers
# forget the former. done.
Step = Literal["spread", "switch", "reseal", "drop", "done"]
SWITCHED: tuple[Step, ...] = ("switch", "reseal", "drop", "done")  # from when the new key seals
DROPPED: tuple[Step, ...] = ("drop", "done")
WORDS: dict[Step, str] = {
    "spread": "servers get the new key",
    "switch": "servers begin to seal with it",
    "reseal": "what the former key sealed is sealed again",
    "drop": "servers forget the former key",
    "done": "done",
}


class Rotation(msgspec.Struct, frozen=True, kw_only=True):
    key: str  # id of the new key
    former: str
    step: Step = "spread"
    by: str = ""
    begun_at: float = 0.0  # unix seconds
    changed_at: float = 0.0  # when the step began, or something was sealed again last
    finished_at: float | None = None
    resealed: int = 0  # objects
    unopened: list[str] = []  # KIND/NAME of objects with a value that neither key opens, the first of them


class RotationInput(msgspec.Struct, frozen=True):
    """``POST /v1/rotations``."""

    part: Annotated[str, msgspec.Meta(max_length=63)]


class RotationAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """How the rotation of a part goes, or went last; ``step`` is "" if there was none."""

    part: str
    step: str = ""
    meaning: str = ""  # of the step
    key: str = ""
    by: str = ""
    begun_at: float = 0.0
    finished_at: float | None = None
    resealed: int = 0
    unopened: list[str] = []
    waits_for: list[str] = []  # servers, each with the reason
    lacking: list[str] = []  # servers that serve, and seal with another key than the fabric


class RotationsAnswer(msgspec.Struct, frozen=True):
    items: list[RotationAnswer]


class SealKeysAnswer(msgspec.Struct, frozen=True):
    """``GET /v1/servers:seal-keys``, for servers."""

    keys: list[str]  # in hexadecimal digits; the first one seals

    def __repr__(self) -> str:
        return "SealKeysAnswer(…)"


def rotation_key(part: str) -> str:
    return f"{RECORDS}{part}"


def read_rotation(value: bytes) -> Rotation:
    return msgspec.json.decode(value, type=Rotation)
