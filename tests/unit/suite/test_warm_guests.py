"""The machines that guests of tests start from: one that no guest should go on from is not saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.warm import snapshots

MACHINE = """#!/bin/sh
echo boot >> {folder}/boots
for word; do case $word in file,id=console,path=*) echo 'warm: the timer is wrong' > "${{word##*path=}}";; esac; done
exec sleep 60
"""


def test_a_machine_that_measured_its_timer_wrongly_is_booted_again_and_never_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshots.lay_out(tmp_path)
    machine = tmp_path / "machine"
    machine.write_text(MACHINE.format(folder=tmp_path))
    machine.chmod(0o755)
    (tmp_path / "kernel").write_bytes(b"kernel")
    monkeypatch.setattr(snapshots, "QEMU", str(machine))
    wanted: dict[str, Any] = {
        "words": ["-chardev", "null,id=console"],
        "line": "quiet",
        "files": ["/kernel", "/kernel"],
        "root": str(tmp_path),
    }
    with pytest.raises(snapshots.Unfit, match="busy"):
        snapshots.SnapshotMaker(tmp_path).save_fit("kind", wanted)
    assert (tmp_path / "boots").read_text().count("boot") == snapshots.BOOTS
    assert list((tmp_path / "saved").iterdir()) == []
