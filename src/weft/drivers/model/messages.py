"""Messages between a gateway and the process that runs its models: JSON behind four bytes with its length."""

from __future__ import annotations

import msgspec

MOST_BYTES = 1 << 20  # of a message


class Loading(msgspec.Struct):
    """A model for the process, whose file is the descriptor ``file``."""

    uid: str
    file: int
    sha256: str
    inputs: int
    output: str = ""
    index: int = 0


class Begin(msgspec.Struct, tag="begin"):
    """The first message to the process: load these."""

    models: list[Loading]


class Ask(msgspec.Struct, tag="ask"):
    """A message to the process: question ``n`` to the model at that place of ``Begin``."""

    n: int
    model: int
    x: list[float | None]  # None: no finite number


class Stage(msgspec.Struct, tag="stage", omit_defaults=True):
    """A message to the gateway: it begins to load a model (``uid``), or has done so, perhaps in vain (``problem``); "": it is
    ready. ``is_crowded``: not for its file, but for want of memory beside the others."""

    uid: str = ""
    done: bool = False
    problem: str = ""
    is_crowded: bool = False


class ModelAnswer(msgspec.Struct, tag="answer", omit_defaults=True):
    """An answer to the gateway. ``y`` is None if there is no number."""

    n: int
    y: float | None = None
    problem: str = ""


read_from_gateway = msgspec.json.Decoder(Begin | Ask).decode
read_from_process = msgspec.json.Decoder(Stage | ModelAnswer).decode
_encode = msgspec.json.Encoder().encode


def frame(message: Begin | Ask | Stage | ModelAnswer) -> bytes:
    body = _encode(message)
    return len(body).to_bytes(4, "big") + body
