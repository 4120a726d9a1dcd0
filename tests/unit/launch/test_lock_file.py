"""The lock file: every package pinned and hashed, nothing of the machine it was written on."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[3]
LOCK = (ROOT / "requirements.lock").read_text()


def read_pins() -> dict[str, str]:
    """What follows each pinned package's name, up to the next one."""
    parts = re.split(r"^([a-z0-9-]+)==", LOCK, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_every_locked_package_carries_hashes() -> None:
    assert [name for name, rest in read_pins().items() if "--hash=sha256:" not in rest] == []


def test_the_lock_names_no_index_and_no_folder_of_this_machine() -> None:
    words = ("--index-url", "--extra-index-url", "--find-links", "--trusted-host", "file:", " @ ", "://")
    assert [word for word in words if word in LOCK] == []


def test_everything_the_project_asks_for_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [
        *project["project"]["dependencies"],
        *project["project"]["optional-dependencies"]["test"],
        *project["build-system"]["requires"],
        "editables",
    ]
    extras = project["project"]["optional-dependencies"]
    wanted += [wish for name, extra in extras.items() if name != "test" for wish in extra]
    names = {re.split(r"[^A-Za-z0-9_.-]", wish)[0].lower().replace("_", "-") for wish in wanted} - {"weft"}
    assert names - read_pins().keys() == set()
