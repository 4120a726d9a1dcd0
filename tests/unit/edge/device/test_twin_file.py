"""How far the gateway's file grows: the largest twin that there can be, and the log beside the file after many saves."""

from __future__ import annotations

from pathlib import Path

import msgspec

from weft.edge.device.check import MOST_CHARACTERS
from weft.edge.device.command import Command
from weft.edge.device.model import MOST_PROPERTIES, Device, Model, Property
from weft.edge.device.store import FILE, TwinStore
from weft.edge.device.twin import Twin

WORST = "\x01" * MOST_CHARACTERS  # six bytes each, as JSON


def test_the_largest_twin_is_less_than_two_mebibytes() -> None:
    model = Model({f"p{n}": Property(type="string") for n in range(MOST_PROPERTIES)})
    twin = Twin(Device("u1", "default", "cold-1", "cold"), model, 1e6, 0.0)
    for name in model.properties:
        assert twin.take_values({name: WORST}, 1.0, 1.0)
        twin.begin(Command("i" * 36, name, WORST, 1e9))
    assert len(twin.reported) == MOST_PROPERTIES
    assert len(msgspec.json.encode(twin.keep(1.0, 1.0))) < 2 << 20


def test_many_saves_leave_a_file_of_the_twins_that_are_there_and_a_short_log(tmp_path: Path) -> None:
    store = TwinStore(tmp_path)
    for round_ in range(60):
        store.save_twins({f"u{n}": b"x" * 1000 for n in range(round_, round_ + 300)}, [f"u{round_ - 1}"])
    assert len(store._base.execute("select uid from twin").fetchall()) == 300
    assert (tmp_path / FILE).stat().st_size < 2 << 20
    assert (tmp_path / f"{FILE}-wal").stat().st_size < 16 << 20
    store.close()
