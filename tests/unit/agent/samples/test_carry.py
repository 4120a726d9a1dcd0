"""Samples that follow a workload to another node, also from one that lies: weft/agent/samples/carry.py, files.py."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import msgspec
import pytest

from weft.agent.samples.carry import PIECE_BYTES, Piece, pack_file, put_piece, read_piece
from weft.agent.samples.files import SampleFiles
from weft.objects.errors import InvalidInput
from weft.protocol.migration import MOST_BYTES, MigrationRequest
from weft.telemetry.samples.file import open_file
from weft.telemetry.samples.layout import MOST_SERIES, Series
from weft.telemetry.samples.query import plan_question

NOW = 1_800_000_000.0
CPU, ROOT = Series("cpu", "cores"), Series("disk.root.read", "bytes/s")


def fill(files: SampleFiles, first: float, seconds: int, series: tuple[Series, ...], value: float) -> None:
    file = files.open("vm1", series)
    for tick in range(seconds * 5):
        file.append(first + tick * 0.2 + 0.02, [value + at for at in range(len(series))])
    file.close()


async def ask(files: SampleFiles, now: float, seconds: float, granularity: float) -> dict[str, list[list[Any]]]:
    answer = json.loads(await files.answer("vm1", plan_question(now, seconds, 0.0, granularity), ()))
    return {one["name"]: one["points"] for one in answer["series"]}


async def carry(source: SampleFiles, target: SampleFiles, now: float = NOW + 1000) -> None:
    for piece in await source.pack("vm1"):
        await target.take("vm1", piece, now)


async def test_what_both_nodes_measured_is_one_series_at_every_step(tmp_path: Path) -> None:
    source, target = SampleFiles(tmp_path / "a"), SampleFiles(tmp_path / "b")
    fill(source, NOW, 20, (CPU, ROOT), 1.0)
    fill(target, NOW + 21, 9, (ROOT, CPU), 10.0)  # in another order
    await carry(source, target)
    for granularity in (0.2, 1.0):
        cpu = dict((await ask(target, NOW + 29.99, 29.9, granularity))["cpu"])
        assert (cpu[NOW + 1], cpu[NOW + 19], cpu[NOW + 20], cpu[NOW + 21]) == (1.0, 1.0, None, 11.0)
    coarse = await ask(target, NOW + 29.99, 30, 10)
    # 1 s of the last ten was measured by neither: the others count alike.
    assert coarse["cpu"] == [[NOW, 1.0], [NOW + 10, 1.0], [NOW + 20, 11.0]]
    assert coarse["disk.root.read"] == [[NOW, 2.0], [NOW + 10, 2.0], [NOW + 20, 10.0]]
    assert target.take_replaced() == set()


async def test_a_node_that_has_measured_nothing_yet_gets_all_of_it(tmp_path: Path) -> None:
    source, target = SampleFiles(tmp_path / "a"), SampleFiles(tmp_path / "b")
    fill(source, NOW, 700, (CPU,), 1.0)
    await carry(source, target)
    assert (await ask(target, NOW + 700, 690, 1))["cpu"] == (await ask(source, NOW + 700, 690, 1))["cpu"]
    assert (await ask(target, NOW + 700, 86400 * 3, 300))["cpu"][-3:] == [[NOW + at, 1.0] for at in (0, 300, 600)]
    assert target.take_replaced() == {"vm1"}
    assert await target.pack("never") == []


async def test_a_disk_that_only_the_source_measured_widens_the_file(tmp_path: Path) -> None:
    source, target = SampleFiles(tmp_path / "a"), SampleFiles(tmp_path / "b")
    fill(source, NOW, 2, (CPU, ROOT), 1.0)
    fill(target, NOW + 2, 2, (CPU,), 5.0)
    await carry(source, target)
    found = await ask(target, NOW + 3.99, 4, 1)
    assert [value for _, value in found["disk.root.read"]] == [2.0, 2.0, None, None]
    assert [value for _, value in found["cpu"]] == [1.0, 1.0, 5.0, 5.0]


async def test_what_was_measured_here_counts_and_nothing_is_of_the_future(tmp_path: Path) -> None:
    source, target = SampleFiles(tmp_path / "a"), SampleFiles(tmp_path / "b")
    fill(source, NOW, 8, (CPU,), 1.0)
    fill(target, NOW + 2, 3, (CPU,), 5.0)
    await carry(source, target, now=NOW + 5.5)
    values = [value for _, value in (await ask(target, NOW + 7.99, 8, 1))["cpu"]]
    assert values[:4] == [1.0, 1.0, 5.0, 5.0] and values[5] == 1.0 and set(values[6:]) <= {None}


def test_a_piece_of_the_widest_file_fits_into_a_message(tmp_path: Path) -> None:
    file = open_file(
        tmp_path / "a.samples", [Series(f"disk.a{n:017}.written", "operations/s") for n in range(MOST_SERIES)]
    )
    for slot in range(int(NOW), int(NOW) + 900):
        file.put(1, slot, [1.5] * file.layout.columns * 3)
    for piece in pack_file(file):
        assert len(msgspec.json.encode(MigrationRequest("samples", samples=piece))) < MOST_BYTES
    file.close()


def make(**changes: Any) -> bytes:
    piece = Piece((CPU,), 1, [int(NOW)], struct.pack("<3f", 1, 2, 3))
    return msgspec.msgpack.encode(msgspec.structs.replace(piece, **changes))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 100,
        make(level=9),
        make(level=-1),
        make(series=()),
        make(series=(CPU, CPU), values=bytes(24)),
        make(series=(Series("cpu\x1b]0;", "cores"),)),
        make(series=(Series("<b>", "cores"),)),
        make(series=(Series("cpu", "c" * 99),)),
        make(series=tuple(Series(f"s{n}", "s") for n in range(MOST_SERIES + 1)), values=bytes(12 * (MOST_SERIES + 1))),
        make(values=b"1234"),
        make(slots=[1] * 5),
        make(values=bytes(PIECE_BYTES)),
    ],
)
def test_what_are_no_samples_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInput, match="not samples"):
        read_piece(data)


def test_slots_that_never_were_are_left_out(tmp_path: Path) -> None:
    file = open_file(tmp_path / "a.samples", [CPU])
    slots = [-5, 0, 1 << 62, int(NOW)]
    put_piece(file, read_piece(make(slots=slots, values=bytes(12 * 4))), NOW + 1)
    assert [slot for slot, _ in file.all(1)] == [int(NOW)]
    file.close()
