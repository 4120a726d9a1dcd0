"""Lines in the form that stores keep: of a bounded length, and valid UTF-8. Pure."""

from __future__ import annotations

LONGEST_LINE = 16 << 10


def clean_block(block: bytes) -> bytes:
    """Whole lines: long ones are cut, and bytes that are not UTF-8 written as \\xNN."""
    block = block.replace(b"\r\n", b"\n")
    if len(block) > LONGEST_LINE:
        lines = block.split(b"\n")
        if any(len(line) > LONGEST_LINE for line in lines):
            block = b"\n".join(
                line if len(line) <= LONGEST_LINE else cut_line(line, str(len(line)))[:-1] for line in lines
            )
    try:
        block.decode()
    except UnicodeDecodeError:
        return block.decode("utf-8", "backslashreplace").encode()
    return block


def cut_line(line: bytes, length: str) -> bytes:
    """Its beginning, and how long it was, in words; with a newline."""
    return line[: LONGEST_LINE - 64] + f" … [cut: this line has {length} bytes]\n".encode()
