"""What is counted of a node: weft/drivers/linux/node_counters.py."""

from __future__ import annotations

from pathlib import Path

from weft.agent.samples.node import MOST_POOLS
from weft.agent.samples.series import plan_measure
from weft.drivers.linux.node_counters import (
    MOST_CORES,
    count_cores,
    count_disk,
    count_pressure,
    open_node_counters,
    read_temperature,
)
from weft.telemetry.samples.layout import HEADER_BYTES, MOST_SERIES, Layout, encode_header


def test_cores_count_what_they_work_and_not_what_they_wait() -> None:
    text = "cpu  100 20 30 4000 500 6 4 7 0 0\ncpu0 50 10 15 2000 250 3 2 4 0 0\ncpu1 1 1 1 1 1 1 1 1 0 0\nintr 1 2 3\n"
    assert count_cores(text) == {"cpu": 1.6, "steal": 0.07, "cpu.0": 0.8, "cpu.1": 0.05}
    many = "cpu 1 1 1 1 1 1 1 1\n" + "".join(f"cpu{n} 1 1 1 1 1 1 1 1\n" for n in range(500))
    assert len(count_cores(many)) == 2 + MOST_CORES


def test_pressure_is_the_time_in_which_something_waited() -> None:
    text = (
        "some avg10=0.22 avg60=0.17 avg300=1.11 total=58761459\nfull avg10=0.23 avg60=0.16 avg300=1.08 total=58464525\n"
    )
    assert count_pressure(text, "io") == {"pressure.io": 58.761459, "pressure.io.full": 58.464525}
    assert set(count_pressure(text, "cpu")) == {"pressure.cpu"}


def test_a_disk_s_sectors_are_bytes_and_its_milliseconds_seconds() -> None:
    text = "   19155    18679   385760     6149    23270    22274  6958456    69112        0    47284    90247\n"
    assert count_disk(text, "sda") == {
        "disk.sda.read": 385760 * 512, "disk.sda.written": 6958456 * 512, "disk.sda.reads": 19155,
        "disk.sda.writes": 23270, "disk.sda.read_seconds": 6.149, "disk.sda.write_seconds": 69.112,
        "disk.sda.busy": 47.284,
    }  # fmt: skip


def test_the_hottest_sensor_counts_and_one_that_says_nonsense_does_not(tmp_path: Path) -> None:
    def put(path: str, text: str) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    for number, text in enumerate(("41000\n", "55500\n", "-128000\n", "no\n", "")):
        put(f"sys/class/thermal/thermal_zone{number}/temp", text)
    put("proc/meminfo", "MemTotal:  2000 kB\nMemFree: 1 kB\nMemAvailable:  500 kB\n")
    put("sys/block/vda/stat", "1 0 8 4 2 0 16 6 0 9 10\n")
    put("sys/block/loop0/stat", "1 0 8 4 2 0 16 6 0 9 10\n")
    put("sys/class/net/eth0.7/statistics/rx_bytes", "77\n")
    quick, slow = open_node_counters("eth0.7", tmp_path)
    assert quick.names == ("nic.eth0.7.received",)
    found = slow.read(1.0, often=False)
    assert found is not None and found.values["temperature"] == 55.5 and found.values["memory.used"] == 1500 * 1024
    assert "disk.vda.busy" in slow.names and not any("loop" in name for name in slow.names)
    assert slow.read(1.2, often=False) is None and slow.read(2.0, often=False) is not None
    for one in (quick, slow):
        one.close()
    assert read_temperature("999999") == {}


def test_the_node_that_this_runs_on_has_cores_memory_and_what_its_kernel_counts() -> None:
    quick, slow = open_node_counters("lo")
    now = quick.read(1.0, often=False)
    assert now is not None and now.values["cpu"] > 0 and now.values["nic.lo.received"] >= 0
    assert slow.read(1.0, often=False) is not None and "memory.available" in slow.names
    for one in (quick, slow):
        one.close()


def test_all_series_of_the_largest_node_fit_into_a_file(tmp_path: Path) -> None:
    def put(path: str, text: str) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    put("proc/stat", "".join(f"cpu{n} 1 1 1 1 1 1 1 1\n" for n in ("", *range(512))))
    for resource in ("cpu", "memory", "io"):
        put(f"proc/pressure/{resource}", "some avg10=0 total=1\nfull avg10=0 total=1\n")
    for name in ("rx_bytes", "rx_packets", "rx_dropped", "tx_bytes", "tx_packets", "tx_dropped"):
        put(f"sys/class/net/{'l' * 15}/statistics/{name}", "1\n")
    for disk in range(40):
        put(f"sys/block/{disk:015}/stat", "1 0 8 4 2 0 16 6 0 9 10\n")
    put("sys/class/hwmon/hwmon0/temp1_input", "41000\n")
    put("proc/meminfo", "MemTotal:  2000 kB\nMemAvailable:  500 kB\n")
    counters = open_node_counters("l" * 15, tmp_path)
    names = [name for one in counters for name in one.names]
    names += [f"pool.{pool}{'p' * 62}.{part}" for pool in range(MOST_POOLS) for part in ("used", "free")]
    assert len(names) <= MOST_SERIES
    assert len(encode_header(Layout(tuple(plan_measure(name).series for name in names)))) == HEADER_BYTES
    for one in counters:
        one.close()
