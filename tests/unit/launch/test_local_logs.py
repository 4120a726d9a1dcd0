"""The logs of a local cluster: written by many for as long as it lives, and bounded by its nodes' first processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from weft.contracts.clock import SystemClock
from weft.launch.local import init
from weft.launch.local.daemon import LOG_LIMIT_BYTES, Daemon, find_daemon, keep_entered, perform_start, rotate_log
from weft.launch.local.processes import end, inspect_processes

ROOT = Path(__file__).resolve().parents[3]
FORKS = '(sleep 0.2; exec setsid "$@") & wait'  # as nsenter does, and waits; the child leads its group a moment later


def test_of_a_log_that_has_grown_long_the_end_is_kept_and_its_writer_goes_on_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(init, "LOG_LIMIT_BYTES", 5000)
    monkeypatch.setattr(init, "LOG_KEPT_BYTES", 100)
    short = tmp_path / "agent-n1.log"
    short.write_text("short")
    with open(tmp_path / "server.log", "ab") as writer:
        writer.write(b"x" * 6000 + b"the end")
        writer.flush()
        init.bound_logs(str(tmp_path))
        writer.write(b", and on")
    assert (tmp_path / "server.log").read_bytes() == b"x" * 93 + b"the end, and on"
    assert short.read_text() == "short"


def test_a_folder_that_is_gone_ends_no_node(tmp_path: Path) -> None:
    init.bound_logs(str(tmp_path / "gone"))


def test_a_long_log_is_put_aside_before_a_new_start(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    with open(log, "wb") as file:
        file.truncate(LOG_LIMIT_BYTES + 1)
    rotate_log(log)
    assert not log.exists() and (tmp_path / "server.log.1").stat().st_size == LOG_LIMIT_BYTES + 1


@pytest.mark.parametrize("is_there", [True, False])
def test_logs_are_for_root_alone_also_those_of_an_earlier_version(tmp_path: Path, is_there: bool) -> None:
    log = tmp_path / "log" / "server.log"
    if is_there:
        log.parent.mkdir(mode=0o755)
        log.write_text("a name")
        log.chmod(0o644)
    process = perform_start(Daemon("server", ("/bin/sleep", "60"), str(tmp_path)))
    os.kill(process.pid, signal.SIGKILL)
    os.waitpid(process.pid, 0)
    assert (log.stat().st_mode & 0o777, log.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_so_is_that_of_make_install(tmp_path: Path) -> None:
    line = next(line for line in (ROOT / "tools/install").read_text().splitlines() if '"$log.1"' in line)
    log = tmp_path / "install.log"
    with open(log, "wb") as file:
        file.truncate((16 << 20) + 1)
    subprocess.run(["bash", "-euc", f"log={log}\n{line}"], check=True)
    assert log.stat().st_size == 0 and (tmp_path / "install.log.1").stat().st_size == (16 << 20) + 1
    subprocess.run(["bash", "-euc", f"log={log}\n{line}"], check=True)


def test_make_install_says_of_kvm_only_that_its_device_is_there() -> None:
    line = next(
        line for line in (ROOT / "tools/install").read_text().splitlines() if line.startswith("if [ -e /dev/kvm")
    )
    shown = subprocess.run(["bash", "-euc", f"{line}\necho $kvm"], check=True, capture_output=True, text=True).stdout
    assert shown in ("/dev/kvm present\n", "no /dev/kvm (guests are slower, everything works)\n")


async def test_the_pidfile_of_a_daemon_in_other_namespaces_names_the_daemon(tmp_path: Path) -> None:
    daemon = Daemon("server-s1", ("/bin/sleep", f"60.{os.getpid()}"), str(tmp_path))
    entering = perform_start(daemon, ("sh", "-c", FORKS, "sh"))
    try:
        await keep_entered(daemon, entering, SystemClock())
        found = find_daemon(daemon)
        assert found is not None and json.loads(daemon.pidfile.read_bytes())["pid"] == found.pid != entering.pid
        assert os.getpgid(found.pid) == found.pid, "it leads its group"
    finally:
        assert end([one for one in inspect_processes() if one.argv[-2:] == daemon.argv], signal.SIGKILL, 10) == []
