"""The table of what grows is read as it is meant, and each of its rows names a test that is there."""

from __future__ import annotations

from tests.files_table import ROOT, find_undescribed, read_rows


def test_each_file_that_grows_has_a_bound_and_a_test() -> None:
    rows = read_rows()
    assert len(rows) > 20
    assert not [row.shown_by for row in rows if not (ROOT / row.shown_by).exists()]


def test_a_file_that_no_row_describes_and_one_over_its_bound_are_found() -> None:
    known = [("AGENT/guests/abc/console.log", 17 << 20), ("CLONE/log/agent-n1.log", 1), ("SERVER/etcd/data/a/b.wal", 1)]
    assert find_undescribed([(name, 1) for name, _ in known]) == []
    over, unknown, other = find_undescribed([*known, ("AGENT/guests/abc/new.log", 1), ("AGENT/guests.log", 0)])
    assert "over its bound" in over and "new.log" in unknown and "guests.log" in other
