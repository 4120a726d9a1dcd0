"""A server's name: kept in its state folder, and never changed by a flag."""

from __future__ import annotations

from pathlib import Path

import pytest

from weft.launch.server.membership.identity import FILE, keep_identity
from weft.objects.errors import InUse, InvalidInput


def test_a_server_keeps_its_name_and_its_uid(tmp_path: Path) -> None:
    made = keep_identity(tmp_path, None)
    assert made.name == "s1"
    assert keep_identity(tmp_path, None) == keep_identity(tmp_path, "s1") == made
    with pytest.raises(InUse, match="is called s1, not s2"):
        keep_identity(tmp_path, "s2")


def test_a_wrong_name_leaves_nothing_and_a_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="server 'S 2' is not a valid name"):
        keep_identity(tmp_path, "S 2")
    assert not (tmp_path / FILE).exists()
    (tmp_path / FILE).write_text("{")
    with pytest.raises(InvalidInput, match=r"server\.json can't be read"):
        keep_identity(tmp_path, None)
