"""The nodes as a user's policy sees them: a Table that requests each column from the scheduler when it is first read.

Columns of facts are kept until a fact of some node changes, all others for one decision. All are read-only.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from weft.contracts.policy import Request, Table, Texts
from weft.scheduler.own_policies.wire import pack, unpack

LISTS = ("names", "uids", "notes")
ARRAYS = ("capacity", "allocated", "used", "online", "cordoned", "measured", "rank", "gpu_free", "gpu_memory")
CALLS = ("machine", "text", "number", "extra", "members", "holds", "distance")
_OF_FACTS = (
    *("names", "uids", "notes", "capacity", "online", "cordoned", "rank", "gpu_memory", "gpu_model", "taints"),
    *("machine", "text", "holds", "distance"),
)


def answer_need(table: Table, name: str, argument: str) -> Any:
    """The column of ``table`` that the worker requests, in the form for the wire. Raises LookupError for an unknown one."""
    if name in LISTS:
        return list(getattr(table, name))
    if name in ARRAYS:
        return pack(getattr(table, name))
    if name == "gpu_model":
        return _pack_texts(table.gpu_model)
    if name == "taints":
        return [(taint, pack(flags)) for taint, flags in table.taints()]
    if name not in CALLS:
        raise LookupError(name)
    if name == "text":
        texts = table.text(argument)
        return None if texts is None else _pack_texts(texts)
    if name == "extra":
        return [pack(column) for column in table.extra(argument)]
    found = getattr(table, name)(argument)
    return None if found is None else pack(found)


class AskedTable:
    """A Table by ``ask(name, argument)``, which returns what ``answer_need`` made."""

    def __init__(self, ask: Callable[[str, str], Any]) -> None:
        self._ask = ask
        self._facts: dict[tuple[str, str], Any] = {}
        self._rest: dict[tuple[str, str], Any] = {}
        self._stamp: Any = None

    def begin(self, stamp: Any) -> None:
        """Another decision: ``stamp`` differs from the last one's if any fact has changed."""
        self._rest.clear()
        if stamp != self._stamp:
            self._facts.clear()
            self._stamp = stamp

    def __getattr__(self, name: str) -> Any:
        if name in CALLS:
            return partial(self._get, name)
        if name == "taints":
            return partial(self._get, name, "")
        if name in (*LISTS, *ARRAYS, "gpu_model"):
            return self._get(name, "")
        raise AttributeError(f"a table has no {name}")

    def _get(self, name: str, argument: str) -> Any:
        kept = self._facts if name in _OF_FACTS else self._rest
        key = (name, argument)
        if key not in kept:
            packed = self._ask(name, argument)
            read: Callable[[Any], Any] = _READ.get(name, unpack)
            kept[key] = None if packed is None else read(packed)
        return kept[key]


_NOT_SENT = ("constraint", "preferences")  # only the scheduler uses these
_Sent = msgspec.defstruct(
    "_Sent", [(field.name, field.type) for field in msgspec.structs.fields(Request) if field.name not in _NOT_SENT]
)


def write_request(request: Request) -> dict[str, Any]:
    """A request in the form for the wire."""
    return {name: getattr(request, name) for name in _Sent.__struct_fields__}


def read_request(plain: Any) -> Request:
    """Read back the output of ``write_request``."""
    sent = msgspec.convert(plain, _Sent)
    return Request(**{name: getattr(sent, name) for name in _Sent.__struct_fields__})


def _pack_texts(texts: Texts) -> Any:
    return [pack(texts.codes), texts.words]


def _unpack_texts(packed: Any) -> Texts:
    codes, words = packed
    return Texts(unpack(codes), words, {word: place for place, word in enumerate(words)})


_READ: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(LISTS, tuple),
    "gpu_model": _unpack_texts,
    "text": _unpack_texts,
    "taints": lambda packed: [(name, unpack(flags)) for name, flags in packed],
    "extra": lambda packed: (unpack(packed[0]), unpack(packed[1])),
}
