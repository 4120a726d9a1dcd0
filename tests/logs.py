"""A plugin: a failed test prints the ends of the logs that were written while it ran, in the folders of the labs and clusters that
it used."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

MOST_LOGS, END_BYTES = 12, 2000
CONTENT = {"root", "rootfs", "layers", "cache"}  # of guests and of images

_began = pytest.StashKey[float]()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    item.stash[_began] = time.time()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and call.when == "call":
        for path in find_logs(getattr(item, "funcargs", {}).values(), item.stash[_began]):
            with suppress(OSError):
                report.sections.append((f"log {path}", read_end(path)))
    return report


def find_logs(fixtures: Any, began: float) -> list[Path]:
    """The logs that were written since ``began``, the newest first. A fixture names its folders as ``log_folders``, or has one
    ``folder``."""
    written: dict[Path, float] = {}
    for fixture in fixtures:
        folders = getattr(fixture, "log_folders", None) or [getattr(fixture, "folder", None)]
        for folder in folders:
            if isinstance(folder, Path):
                written.update(_list_logs(folder, began))
    return sorted(written, key=lambda path: -written[path])[:MOST_LOGS]


def _list_logs(folder: Path, began: float) -> Iterator[tuple[Path, float]]:
    for pattern in ("*.log", "log"):
        for path in folder.rglob(pattern):
            with suppress(OSError):
                if not CONTENT & set(path.parts) and path.is_file() and path.stat().st_mtime >= began:
                    yield path, path.stat().st_mtime


def read_end(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - END_BYTES))
        return file.read(END_BYTES).decode(errors="replace")
