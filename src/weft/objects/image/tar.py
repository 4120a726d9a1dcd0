"""The header of one member of a tar, as ustar, GNU tar and busybox write it. Pure: one block of 512 bytes in, a Header out.

Archives come from strangers: any other form is refused.
"""

from __future__ import annotations

from typing import NamedTuple

BLOCK = 512
FILE, HARD_LINK, LINK, FOLDER, LONG_NAME, LONG_LINK, WORDS, WORDS_OF_ALL = (
    b"0",
    b"1",
    b"2",
    b"5",
    b"L",
    b"K",
    b"x",
    b"g",
)
DEVICES = (b"3", b"4", b"6")  # character and block devices, named pipes
_USTAR = b"ustar\0"


class Header(NamedTuple):
    name: bytes
    type: bytes
    size: int  # so many bytes follow, filled up to whole blocks
    mode: int  # permissions, with the setuid and sticky bits
    mtime: int
    link: bytes


def is_tar(beginning: bytes) -> bool:
    """Whether a file that begins so (512 bytes) is one."""
    return beginning[257:262] == b"ustar"


def decode_header(block: bytes) -> Header | None:
    """None: the archive ends here. Raises ValueError for what is no header."""
    if len(block) == BLOCK and not any(block):
        return None
    if len(block) < BLOCK or not is_tar(block):
        raise ValueError("no header")
    size, mode, mtime, checksum = (
        decode_number(block[at:to]) for at, to in ((124, 136), (100, 108), (136, 148), (148, 156))
    )
    if checksum != sum(block, 8 * 32) - sum(block[148:156]) or size is None or size < 0:
        raise ValueError("a header that was changed")
    name = _word(block[:100])
    if block[257:263] == _USTAR and (before := _word(block[345:500])):
        name = before + b"/" + name
    type_ = block[156:157]
    return Header(name, FILE if type_ in (b"\0", b"7") else type_, size, mode or 0, mtime or 0, _word(block[157:257]))


def decode_words(content: bytes) -> dict[bytes, bytes]:
    """The attributes in a member of the type WORDS, for the next one: LENGTH NAME=VALUE, each with a newline. Raises ValueError."""
    words = {}
    while content:
        digits, space, _ = content.partition(b" ")
        if not space or not digits.isdigit() or len(digits) > 7:
            raise ValueError("no length")
        line, content = content[: int(digits)], content[int(digits) :]
        name, sign, value = line[len(digits) + 1 :].partition(b"=")
        if not sign or not value.endswith(b"\n"):
            raise ValueError("no word")
        words[name] = value[:-1]
    return words


def decode_number(text: bytes) -> int | None:
    """Octal digits, or GNU's way of writing what they can't. None for anything else."""
    if text[0] == 0x80:
        return int.from_bytes(text[1:], "big")
    digits = text.strip(b"\0 ")
    return int(digits, 8) if digits and all(48 <= digit < 56 for digit in digits) else None


def _word(field: bytes) -> bytes:
    return field.partition(b"\0")[0]
