"""The guide's pictures: which there are, how large they are, and that they can still be taken."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.dashboard.pictures import GUIDE, MOST_BYTES, PICTURES, open_shop, take_all


def test_the_guide_shows_each_picture_that_is_taken_and_no_other() -> None:
    shown = re.findall(r"!\[.+?\]\((dashboard-[\w.-]+)\)", (GUIDE / "dashboard.md").read_text())
    assert sorted(shown) == sorted(f"{name}.webp" for name in PICTURES), "python -m tests.dashboard.pictures takes them"
    assert sorted(path.name for path in GUIDE.glob("dashboard-*")) == sorted(shown)
    assert [name for name in shown if (GUIDE / name).stat().st_size > MOST_BYTES] == []


@pytest.mark.long
def test_the_guide_s_pictures_can_be_taken(chromium: Browser, tmp_path: Path) -> None:
    with open_shop() as (_, link):
        take_all(chromium, link, tmp_path)
    assert {path.stem for path in tmp_path.iterdir()} == set(PICTURES)
    assert all(0 < path.stat().st_size <= MOST_BYTES for path in tmp_path.iterdir())
