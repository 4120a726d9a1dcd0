"""The lock file: every package pinned and hashed, nothing of the machine it was written on."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
LOCK = (ROOT / "requirements.lock").read_text()
OF_DOCS = (ROOT / "tools/site/requirements.lock").read_text()  # of make docs alone
BOTH = pytest.mark.parametrize("lock", [LOCK, OF_DOCS], ids=["weft", "docs"])


def read_pins(lock: str) -> dict[str, str]:
    """What follows each pinned package's name, up to the next one."""
    parts = re.split(r"^([a-z0-9-]+)==", lock, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@BOTH
def test_every_locked_package_carries_hashes(lock: str) -> None:
    assert [name for name, rest in read_pins(lock).items() if "--hash=sha256:" not in rest] == []


@BOTH
def test_the_lock_names_no_index_and_no_folder_of_this_machine(lock: str) -> None:
    words = ("--index-url", "--extra-index-url", "--find-links", "--trusted-host", "file:", " @ ", "://")
    assert [word for word in words if word in lock] == []


def test_what_both_locks_have_is_of_one_version() -> None:
    """They are installed into one environment."""
    ours, theirs = ({name: rest.split()[0] for name, rest in read_pins(lock).items()} for lock in (LOCK, OF_DOCS))
    assert {name: version for name, version in theirs.items() if ours.get(name, version) != version} == {}


def test_everything_the_project_asks_for_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [
        *project["project"]["dependencies"],
        *project["project"]["optional-dependencies"]["test"],
        *project["build-system"]["requires"],
        "editables",
    ]
    extras = project["project"]["optional-dependencies"]
    wanted += [wish for name, extra in extras.items() if name not in ("test", "docs") for wish in extra]
    assert name_all(wanted) - {"weft"} - read_pins(LOCK).keys() == set()
    assert name_all(extras["docs"]) - read_pins(OF_DOCS).keys() == set()


def name_all(wishes: list[str]) -> set[str]:
    return {re.split(r"[^A-Za-z0-9_.-]", wish)[0].lower().replace("_", "-") for wish in wishes}
