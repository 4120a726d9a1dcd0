"""A file of settings that can't be one is refused at once, with what to do."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from weft.launch.process.settings_file import MOST_BYTES, read_settings_file
from weft.objects.errors import InvalidInput

MADE: dict[str, Callable[[Path], object]] = {
    "isn't a regular file": os.mkfifo,
    "isn't a regular file ": os.mkdir,
    "is not UTF-8: byte 4": lambda path: path.write_bytes(b"a: \xff\n"),
    "has more than 1024 KiB": lambda path: path.write_bytes(b"#" * (MOST_BYTES + 1)),
}


@pytest.mark.parametrize("words", MADE)
def test_what_is_no_file_of_settings_is_refused(tmp_path: Path, words: str) -> None:
    path = tmp_path / "weft.yaml"
    MADE[words](path)
    with pytest.raises(InvalidInput, match=words.strip()) as refused:
        read_settings_file(path, "listen: 0.0.0.0:1")
    assert refused.value.field == "config" and refused.value.hint
