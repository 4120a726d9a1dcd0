"""How counters become samples, also on bad days: weft/agent/samples/series.py, track.py."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from weft.agent.samples.series import compute_values, gather_devices, name_nic_counters, plan_measure, plan_measures
from weft.agent.samples.track import Nics, NicsOfRun, Run, Source, Track, list_series
from weft.contracts.clock import SystemClock
from weft.contracts.driver.network import NicCounts
from weft.contracts.driver.runtime import Counted
from weft.telemetry.samples.file import SampleFile, open_file
from weft.telemetry.samples.layout import HEADER_BYTES, MOST_SERIES, Layout, Series, encode_header

NOW = 1_800_000_000.0
DISK = ("read", "written", "reads", "writes", "read_seconds", "write_seconds")


class Script:
    """Counters with given values, one set for each read; None: nothing new."""

    def __init__(self, *values: dict[str, float] | None, names: tuple[str, ...] = ("cpu",), step: float = 0.2) -> None:
        self.names, self._step, self._at = names, step, 0.0
        self._values: Iterator[dict[str, float] | None] = iter(values)

    def read(self, at: float, *, often: bool) -> Counted | None:
        self._at += self._step
        values = next(self._values)
        return None if values is None else Counted(self._at, values)

    def wait(self, until: float) -> None:
        self._at = until

    def close(self) -> None: ...


def record(path: Path, script: Script, ticks: int) -> dict[str, list[float | None]]:
    """The samples of each series, one each 0.2 s; None where there is none."""
    sources = [Source(script)]
    track = Track(Run("g", 1, 1.0, 1), sources, open_file(path, list_series(sources)), SystemClock())
    for tick in range(ticks):
        track.measure(NOW + tick * 0.2 + 0.02, often=False)
    return read(path, ticks)


def read(path: Path, ticks: int) -> dict[str, list[float | None]]:
    file: SampleFile = open_file(path, ())
    block = file.read(0, int(NOW) * 5, int(NOW) * 5 + ticks - 1)
    found = {}
    for index, one in enumerate(file.layout.series):
        found[one.name] = [None if math.isnan(value) else round(value, 3) for value in block.column(index)]
    file.close()
    return found


def test_a_counter_that_begins_again_is_a_gap_and_never_negative(tmp_path: Path) -> None:
    script = Script(*({"cpu": cpu} for cpu in (5.0, 5.1, 5.3, 0.1, 0.2, 2.0**64)))
    assert record(tmp_path / "a", script, 5)["cpu"] == [None, 0.5, 1.0, None, 0.5]


def test_a_counter_that_is_not_known_for_a_while_is_a_gap_and_then_a_rate_since_it_was(tmp_path: Path) -> None:
    script = Script({"cpu": 1.0}, None, None, {"cpu": 1.6}, {}, {"cpu": 2.0}, {"cpu": 2.1})
    assert record(tmp_path / "a", script, 7)["cpu"] == [None, None, None, 1.0, None, None, 0.5]


def test_two_readings_at_almost_the_same_time_make_no_rate(tmp_path: Path) -> None:
    """As after a wait: a millisecond between a clock and a counter would be a spike."""
    script = Script({"cpu": 1.0}, {"cpu": 1.05}, {"cpu": 1.1}, {"cpu": 1.15}, step=0.025)
    assert record(tmp_path / "a", script, 3)["cpu"] == [None, None, 2.0]


def test_steps_that_a_busy_machine_missed_have_the_rate_that_covers_them(tmp_path: Path) -> None:
    """So that the mean of a second is what was counted in it."""
    script = Script({"cpu": 1.0}, {"cpu": 1.1}, {"cpu": 1.7}, {"cpu": 1.8}, {"cpu": 1.9})
    sources = [Source(script)]
    track = Track(Run("g", 1, 1.0, 1), sources, open_file(tmp_path / "a", list_series(sources)), SystemClock())
    for step in (0, 1, 4, 5, 12):
        script.wait(step * 0.2)
        track.measure(NOW + step * 0.2 + 0.02, often=False)
    assert read(tmp_path / "a", 13)["cpu"] == [None, 0.5, 1.0, 1.0, 1.0, 0.5, *[None] * 6, 0.071]


def test_a_wall_clock_that_steps_changes_no_rate(tmp_path: Path) -> None:
    script = Script(*({"cpu": tick / 10} for tick in range(9)))
    sources = [Source(script)]
    track = Track(Run("g", 1, 1.0, 1), sources, open_file(tmp_path / "a", list_series(sources)), SystemClock())
    for now in (NOW, NOW + 0.2, NOW - 3607, NOW - 3606.8, NOW + 86437, NOW + 86437.2, NOW + 0.4, NOW + 0.6, NOW + 0.8):
        track.measure(now + 0.02, often=False)
    track.close()
    assert read(tmp_path / "a", 5)["cpu"] == [None, 0.5, 0.5, 0.5, 0.5]
    file = open_file(tmp_path / "a", ())
    assert {round(row[0], 3) for _, row in file.all(0) if row[0] == row[0]} == {0.5}
    file.close()


def test_a_disk_has_rates_and_latencies_and_none_without_operations() -> None:
    measures = plan_measures(f"disk.data.{part}" for part in DISK)
    assert [(one.series.name, one.series.unit) for one in measures] == [
        ("disk.data.read", "bytes/s"),
        ("disk.data.written", "bytes/s"),
        ("disk.data.reads", "operations/s"),
        ("disk.data.writes", "operations/s"),
        ("disk.data.read_latency", "s"),
        ("disk.data.write_latency", "s"),
    ]
    before = {f"disk.data.{part}": 0.0 for part in DISK}
    now = {**before, "disk.data.read": 8192.0, "disk.data.reads": 2.0, "disk.data.read_seconds": 0.01}
    values = compute_values(measures, before, now, 2.0)
    assert values[:5] == [4096.0, 0.0, 1.0, 0.0, 0.005] and math.isnan(values[5])


def test_nics_are_numbered_in_the_order_of_the_workload_s_networks(tmp_path: Path) -> None:
    class Kernel:
        def __init__(self) -> None:
            self.reads = 0

        def read(self, ports: Any) -> dict[str, NicCounts]:
            self.reads += 1
            return {
                "second": NicCounts(*(100 * self.reads * factor for factor in range(1, 7)))
            }  # the first isn't there

        def close(self) -> None: ...

    nics = Nics(Kernel())
    sources = [Source(NicsOfRun(nics, ("first", "second")))]
    track = Track(Run("g", 1, 1.0, 1), sources, open_file(tmp_path / "a", list_series(sources)), SystemClock())
    for tick in range(3):
        nics.read(("first", "second"), 10.0 + tick)
        track.measure(NOW + tick * 0.2 + 0.02, often=False)
    found = read(tmp_path / "a", 3)
    assert found["nic1.received"] == [None, 100.0, 100.0] and found["nic1.sent_drops"] == [None, 600.0, 600.0]
    assert found["nic0.received"] == [None] * 3


def test_all_series_that_a_vm_may_have_fit_into_a_file() -> None:
    names = ["cpu", "steal", "memory.resident", "memory.shared"]
    names += [name for nic in range(8) for name in name_nic_counters(nic)]
    names += [f"disk.{'a' * 13}-{disk:06x}.{part}" for disk in range(17) for part in DISK]
    layout = Layout(tuple(plan_measure(name).series for name in names))
    assert len(names) <= MOST_SERIES and len(encode_header(layout)) == HEADER_BYTES


def test_disks_that_come_and_go_do_not_grow_a_file_for_ever(tmp_path: Path) -> None:
    for disk in range(60):
        names = ("cpu", *(f"disk.{disk}.{part}" for part in DISK))
        file = open_file(tmp_path / "a", [plan_measure(name).series for name in names])
        file.append(NOW + disk, [float(disk), *[0.0] * 6][:7] + [0.0] * (len(file.layout.series) - 7))
        assert len(file.layout.series) <= MOST_SERIES
        file.close()
    assert read(tmp_path / "a", 295)["cpu"][::5] == [float(disk) for disk in range(59)]


def test_more_series_than_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="too many"):
        open_file(tmp_path / "a", [Series(f"s{n}", "bytes") for n in range(MOST_SERIES + 1)])


def test_counters_are_gathered_by_disk_and_nic_for_the_history() -> None:
    counted = {"cpu": 1.0, "memory.used": 5.0, "disk.read": 7.0, "disk.a.b.writes": 3.0, "disk.a.b.busy": 9.0}
    counted |= dict(zip(name_nic_counters(1), range(10, 16), strict=True))
    found = gather_devices(counted)
    assert found.disks == {"": [7.0, -1, -1, -1, -1, -1], "a.b": [-1, -1, -1, 3.0, -1, -1]}
    # As NicCounts have them: received bytes, packets, drops; sent the same.
    assert found.nics == [[-1] * 6, [10, 11, 12, 13, 14, 15]]
