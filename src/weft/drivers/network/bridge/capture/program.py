"""Makes a program for the kernel's packet filter (classic BPF) out of a tree of tests. Pure."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import msgspec

from weft.drivers.network.bridge.capture.expression import Both, Either, Not, Test, Tree, parse_filter
from weft.objects.errors import InvalidInput

MOST_INSTRUCTIONS = 2000  # 16 kB, which every kernel takes from a socket
_RETURN, _JUMP = 0x06, 0x05
_FARTHEST = 255  # instructions that a comparison can skip; a jump of its own can skip any number
_INSTRUCTION = struct.Struct("=HBBI")


class _Label(msgspec.Struct, eq=False):
    at: int = -1


class _Load(msgspec.Struct):
    code: int
    operand: int


class _Compare(msgspec.Struct):
    code: int
    operand: int
    yes: _Label
    no: _Label
    is_long: bool = False


_Item = _Load | _Compare | _Label


def compile_filter(text: str, most_bytes: int) -> bytes:
    """The program that takes the first ``most_bytes`` of each packet that ``text`` describes. Raises InvalidInput."""
    tree = parse_filter(text)
    items: list[_Item] = []
    yes, no = _Label(), _Label()
    if tree is not None:
        _emit(tree, yes, no, items)
    items += [yes, _Load(_RETURN, most_bytes), no, _Load(_RETURN, 0)]
    while _place(items):
        pass
    program = b"".join(_encode(items))
    if len(program) > MOST_INSTRUCTIONS * _INSTRUCTION.size:
        raise InvalidInput("filter is too long for the kernel", field="filter", hint="leave tests out, or use net")
    return program


def _emit(tree: Tree, yes: _Label, no: _Label, items: list[_Item]) -> None:
    """Instructions that go to ``yes`` for what the tree describes, and else to ``no``."""
    match tree:
        case Test(loads, jump, value):
            items += [_Load(*load) for load in loads]
            items.append(_Compare(jump, value, yes, no))
        case Not(inner):
            _emit(inner, no, yes, items)
        case Both(first, second):
            middle = _Label()
            _emit(first, middle, no, items)
            items.append(middle)
            _emit(second, yes, no, items)
        case Either(first, second):
            middle = _Label()
            _emit(first, yes, middle, items)
            items.append(middle)
            _emit(second, yes, no, items)


def _place(items: Sequence[_Item]) -> bool:
    """Number the labels; whether a comparison had to become long, which shifts them."""
    at, placed = 0, list[tuple[int, _Compare]]()
    for item in items:
        if isinstance(item, _Label):
            item.at = at
        elif isinstance(item, _Compare):
            placed.append((at, item))
            at += 3 if item.is_long else 1
        else:
            at += 1
    found = [one for at, one in placed if not one.is_long and max(one.yes.at, one.no.at) - at - 1 > _FARTHEST]
    for one in found:
        one.is_long = True
    return bool(found)


def _encode(items: Sequence[_Item]) -> list[bytes]:
    found: list[bytes] = []
    for item in items:
        if isinstance(item, _Load):
            found.append(_INSTRUCTION.pack(item.code, 0, 0, item.operand))
        elif isinstance(item, _Compare):
            at = len(found)
            if item.is_long:
                found.append(_INSTRUCTION.pack(item.code, 0, 1, item.operand))
                found += [
                    _INSTRUCTION.pack(_JUMP, 0, 0, label.at - at - skipped)
                    for label, skipped in ((item.yes, 2), (item.no, 3))
                ]
            else:
                found.append(_INSTRUCTION.pack(item.code, item.yes.at - at - 1, item.no.at - at - 1, item.operand))
    return found
