"""Whether this machine should be rebooted, as Debian's packages and /boot say, and which boot it is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from weft.drivers.power.systemd import SystemdReboot, find_newer_kernel
from weft.objects.errors import DriverFailed


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for folder in ("boot", "run/systemd/system"):
        (tmp_path / folder).mkdir(parents=True)
    return tmp_path


def machine(root: Path, kernel: str = "6.1.0-25-amd64") -> SystemdReboot:
    return SystemdReboot(root / "run/systemd/system", root / "boot", root / "run", kernel)


@pytest.mark.parametrize(
    ("running", "installed", "newer"),
    [
        ("6.1.0-25-amd64", ["6.1.0-25-amd64", "6.1.0-28-amd64"], "6.1.0-28-amd64"),
        ("6.1.0-9-amd64", ["6.1.0-9-amd64", "6.1.0-10-amd64"], "6.1.0-10-amd64"),
        ("6.1.0-28-amd64", ["6.1.0-25-amd64", "6.1.0-28-amd64"], ""),
        ("6.1.0-25-amd64", ["6.1.0-28-rt-amd64", "6.1.0-28-cloud-amd64"], ""),
        ("6.12.9+bpo-amd64", ["6.1.0-28-amd64", "6.12.12+bpo-amd64"], "6.12.12+bpo-amd64"),
        ("6.1.0-25-amd64", [], ""),
        ("6.1.0-25-amd64", ["lts", "", "6.1.0-26-amd64.old"], ""),
        ("custom", ["6.1.0-28-amd64"], ""),
    ],
)
def test_only_a_newer_kernel_of_the_same_flavour_counts(running: str, installed: list[str], newer: str) -> None:
    assert find_newer_kernel(running, [f"vmlinuz-{one}" for one in installed]) == newer


def test_a_newer_kernel_and_what_packages_ask_for_are_named(root: Path) -> None:
    assert machine(root).find_need() == ""
    (root / "run/reboot-required").touch()
    assert machine(root).find_need() == "its packages ask for it"
    (root / "run/reboot-required.pkgs").write_text("libc6\ndbus\nlibc6\nsystemd\nzlib1g\n\x1b[2J\n")
    assert machine(root).find_need() == "packages ask for it: dbus, libc6, systemd"
    (root / "boot/vmlinuz-6.1.0-28-amd64").touch()
    assert machine(root).find_need() == "kernel 6.1.0-28-amd64 is installed, and 6.1.0-25-amd64 runs"


def test_a_container_has_the_kernel_of_its_host(root: Path) -> None:
    (root / "boot/vmlinuz-6.1.0-28-amd64").touch()
    (root / "run/systemd/container").write_text("systemd-nspawn\n")
    assert machine(root).find_need() == ""


def test_a_machine_without_systemd_is_not_rebooted_from_here(root: Path) -> None:
    (root / "run/reboot-required").touch()
    (root / "run/systemd/system").rmdir()
    assert machine(root).find_need() == ""


def test_each_boot_has_another_mark(root: Path) -> None:
    (root / "1").mkdir()
    marks = set()
    for began in (100, 200):
        fields = ["S", *("0" for _ in range(18)), str(began), "0"]
        (root / "1/stat").write_text(f"1 (systemd (x) y) {' '.join(fields)}\n")
        marks.add(SystemdReboot(root, root, root, "6.1.0", proc=root).read_boot())
    assert len(marks) == 2
    assert SystemdReboot().read_boot() == SystemdReboot().read_boot()


@pytest.mark.parametrize("script", ["echo 'Access denied' >&2; exit 1", None])
def test_a_reboot_that_systemd_refuses_is_told(root: Path, monkeypatch: pytest.MonkeyPatch, script: str | None) -> None:
    if script is not None:
        (root / "systemctl").write_text(f"#!/bin/sh\n{script}\n")
        (root / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{root}{os.pathsep}/bin" if script is not None else str(root))
    with pytest.raises(DriverFailed, match=r"systemctl reboot failed: .*(Access denied|No such file)"):
        machine(root).begin()
