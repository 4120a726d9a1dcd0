"""Files of models on a node: whole by their digest or not there. The server is the test's: it says what it likes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.onnx_files import digest

from weft.client.answer import ClientAnswer
from weft.edge.server.files import PARTIAL, PIECE_BYTES, ModelFiles
from weft.objects.code_limits import MOST_BYTES
from weft.objects.errors import DriverFailed, TooLarge, Unavailable, WeftError


class Server:
    """Has ``content`` under every digest; a request takes one range of it."""

    def __init__(self, content: bytes, *, is_endless: bool = False, cut_after: int = 1000) -> None:
        self.content, self.is_endless, self.cut_after, self.asked = content, is_endless, cut_after, 0
        self.http = self

    def request(
        self, method: str, path: str, body: Any = None, *, headers: Mapping[str, str], **_: Any
    ) -> ClientAnswer:
        first, last = (int(one) for one in headers["Range"].removeprefix("bytes=").split("-"))
        if self.asked == self.cut_after:
            raise Unavailable("the line is cut")
        self.asked += 1
        if self.is_endless:
            return ClientAnswer(206, {}, bytes(last + 1 - first))
        if first >= len(self.content):
            return ClientAnswer(416, {}, b"")
        return ClientAnswer(206, {}, self.content[first : last + 1])


@pytest.mark.parametrize("size", [1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES * 2 + 7])
def test_a_file_is_fetched_in_pieces_and_found_again_by_another_process(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    files, server = ModelFiles(tmp_path / "models"), Server(content)
    assert files.find(digest(content)) == ""
    files.fetch(server, digest(content))  # type: ignore[arg-type]
    path = ModelFiles(tmp_path / "models").find(digest(content))
    assert Path(path).read_bytes() == content
    assert server.asked == size // PIECE_BYTES + 1
    assert Path(path).stat().st_mode & 0o077 == 0


def test_what_isnt_what_its_digest_says_is_not_kept_and_one_that_was_spoilt_is_not_found(tmp_path: Path) -> None:
    files = ModelFiles(tmp_path / "models")
    with pytest.raises(DriverFailed, match="digest"):
        files.fetch(Server(b"another"), digest(b"one"))  # type: ignore[arg-type]
    assert list((tmp_path / "models").iterdir()) == []
    files.fetch(Server(b"one"), digest(b"one"))  # type: ignore[arg-type]
    (tmp_path / "models" / digest(b"one")).write_bytes(b"two")
    assert ModelFiles(tmp_path / "models").find(digest(b"one")) == ""


def test_a_server_that_never_ends_is_left_at_the_bound(tmp_path: Path) -> None:
    files, server = ModelFiles(tmp_path / "models"), Server(b"", is_endless=True)
    with pytest.raises(TooLarge, match="50 MiB"):
        files.fetch(server, "a" * 64)  # type: ignore[arg-type]
    assert server.asked == MOST_BYTES // PIECE_BYTES + 1
    assert list((tmp_path / "models").iterdir()) == []


def test_a_fetch_that_was_cut_goes_on_from_the_pieces_that_came(tmp_path: Path) -> None:
    content = os.urandom(PIECE_BYTES * 3 + 5)
    files, server = ModelFiles(tmp_path), Server(content, cut_after=2)
    with pytest.raises(Unavailable):
        files.fetch(server, digest(content))  # type: ignore[arg-type]
    partial = tmp_path / f"{digest(content)}{PARTIAL}"
    with partial.open("ab") as out:
        out.write(b"half a piece, as after a power cut")
    files.forget([], [digest(content)])
    server.asked, server.cut_after = 0, 100
    files.fetch(server, digest(content))  # type: ignore[arg-type]
    assert Path(files.find(digest(content))).read_bytes() == content
    assert (server.asked, partial.exists()) == (2, False)


def test_what_came_before_a_cut_and_is_spoilt_is_fetched_again_from_the_start(tmp_path: Path) -> None:
    content = os.urandom(PIECE_BYTES + 5)
    files, partial = ModelFiles(tmp_path), tmp_path / f"{digest(content)}{PARTIAL}"
    partial.write_bytes(bytes(PIECE_BYTES))
    with pytest.raises(DriverFailed, match="digest"):
        files.fetch(Server(content), digest(content))  # type: ignore[arg-type]
    files.fetch(Server(content), digest(content))  # type: ignore[arg-type]
    assert files.find(digest(content))


def test_a_refusal_and_a_full_disk_are_told_in_words(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file in place of the folder")
    with pytest.raises(WeftError, match="can't be kept"):
        ModelFiles(tmp_path / "models").fetch(Server(b"one"), digest(b"one"))  # type: ignore[arg-type]


def test_what_no_model_needs_is_removed_and_what_was_half_fetched_too(tmp_path: Path) -> None:
    files = ModelFiles(tmp_path)
    for content in (b"one", b"two"):
        files.fetch(Server(content), digest(content))  # type: ignore[arg-type]
    (tmp_path / f"{'a' * 64}{PARTIAL}").write_bytes(b"half")
    files.forget([files.find(digest(b"two"))])
    assert [one.name for one in tmp_path.iterdir()] == [digest(b"two")]
