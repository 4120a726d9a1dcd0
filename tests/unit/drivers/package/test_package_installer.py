"""The installer of packages: what the service puts into its folder, and what root's program makes of it."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest
from tools.packages.build import HERE

from weft.drivers.package.installer import DebianInstaller

KEY = "0123-uid/1"
DPKG = """#!/bin/sh
echo "$@" >>{log}
case "$*" in *--install*) [ ! -e {fails} ] || {{ cat {fails} >&2; exit 1; }};; esac
"""
DPKG_DEB = """#!/bin/sh
sed -n 's/^Package: //p' "$2"
"""


class Machine:
    """A machine's folders, and the program of root with a dpkg that notes what it is told."""

    def __init__(self, folder: Path) -> None:
        self.base, self.tree, self.log, self.fails = (
            folder / "install",
            folder / "tree",
            folder / "log",
            folder / "fails",
        )
        (self.base / "agent").mkdir(parents=True)
        self.tree.mkdir()
        programs = folder / "bin"
        programs.mkdir()
        for name, text in (("dpkg", DPKG.format(log=self.log, fails=self.fails)), ("dpkg-deb", DPKG_DEB)):
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
        program = (
            (HERE / "install").read_text().replace("ROLE", "agent").replace("/var/lib/weft/install", str(self.base))
        )
        (self.tree / "install").write_text(program.replace("/var/tmp", str(folder)))
        self.path = f"{programs}:{os.environ['PATH']}"
        self.installer = DebianInstaller("agent", self.base, self.tree, str(self.tree), folder)

    def put(self, name: str, package: str) -> str:
        data = f"Package: {package}\n".encode()
        (self.installer.folder / name).write_bytes(data)
        return hashlib.sha256(data).hexdigest()

    def begin(self, key: str = KEY) -> None:
        names = {"weft-client_amd64.deb": "weft-client", "weft-agent_amd64.deb": "weft-agent"}
        self.installer.begin(key, {name: self.put(name, package) for name, package in names.items()})

    def run(self) -> str:
        subprocess.run(["sh", self.tree / "install"], check=True, env={"PATH": self.path}, timeout=30)
        outcome = self.installer.read_outcome()
        assert outcome is not None
        assert outcome.key == KEY
        return outcome.problem


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_the_packages_are_installed_and_the_outcome_is_read(machine: Machine) -> None:
    assert machine.installer.find_obstacle() == ""
    assert machine.installer.read_outcome() is None
    machine.begin()
    assert machine.installer.is_under_way(KEY)
    assert not machine.installer.is_under_way("other/1")
    assert machine.run() == ""
    assert not machine.installer.is_under_way(KEY)
    ran = machine.log.read_text().splitlines()
    assert ran[0] == "--configure -a"  # of one that was cut off
    assert "--force-confold" in ran[1]  # what the administrator changed in /etc/weft stays
    assert {"weft-client_amd64.deb", "weft-agent_amd64.deb"} == {
        Path(word).name for word in ran[1].split() if ".deb" in word
    }
    machine.installer.clear()
    assert [path.name for path in machine.installer.folder.iterdir()] == []


def test_what_dpkg_says_is_the_outcome(machine: Machine) -> None:
    machine.begin()
    path = "/usr/lib/weft/agent/lib/python3.11/site-packages/" + "weft/" * 60
    machine.fails.write_text(
        "dpkg: error processing archive /var/tmp/x/weft-agent_amd64.deb (--install):\n"
        f" cannot copy extracted data for '.{path}a.py' to '{path}a.py.dpkg-new': failed to write (No space left on device)\n"
        "Errors were encountered while processing:\n /var/tmp/x/weft-agent_amd64.deb\n"
    )
    assert machine.run() == (
        "dpkg: cannot copy extracted data for a file to a file: failed to write (No space left on device)"
    )
    assert not machine.installer.is_under_way(KEY)


def test_another_file_than_the_one_that_was_named_is_not_installed(machine: Machine) -> None:
    machine.begin()
    machine.put("weft-agent_amd64.deb", "weft-agent\nVersion: 6.6.6")
    assert machine.run() == "the packages aren't the ones that were uploaded"
    assert not machine.log.exists()


@pytest.mark.parametrize(
    ("name", "package", "said"),
    [
        ("bash_amd64.deb", "bash", "a file that isn't a package of weft is to be installed"),
        ("weft-server_amd64.deb", "weft-server", "a file that isn't a package of weft is to be installed"),
        ("weft-agent_amd64.deb", "bash", "weft-agent_amd64.deb is not the package weft-agent"),
        ("weft-agent_../../etc/x.deb", "", "a name that no package has is to be installed"),
        ("weft-agent_$(id).deb", "", "a name that no package has is to be installed"),
    ],
)
def test_nothing_but_the_packages_of_this_service_is_installed(
    machine: Machine, name: str, package: str, said: str
) -> None:
    digest = machine.put(name, package) if "/" not in name else "0" * 64
    machine.installer.begin(KEY, {name: digest})
    assert machine.run() == said
    assert not machine.log.exists()


def test_a_link_to_a_file_of_root_is_neither_followed_nor_told(machine: Machine, tmp_path: Path) -> None:
    secret = tmp_path / "shadow"
    secret.write_text("root:hash")
    (machine.installer.folder / "weft-agent_amd64.deb").symlink_to(secret)
    machine.installer.begin(KEY, {"weft-agent_amd64.deb": hashlib.sha256(b"root:hash").hexdigest()})
    assert machine.run().startswith("weft-agent_amd64.deb can't be copied")
    assert "hash" not in (machine.base / "agent.outcome").read_text()


def test_an_outcome_that_the_service_made_a_link_is_replaced(machine: Machine, tmp_path: Path) -> None:
    """The folder above the service's is root's: a service can't put a link there, and the program wouldn't follow one."""
    precious = tmp_path / "precious"
    precious.write_text("as it was")
    (machine.base / "agent.outcome.new").symlink_to(precious)
    machine.begin()
    assert machine.run() == ""
    assert precious.read_text() == "as it was"


def test_nothing_to_install_is_an_outcome_too(machine: Machine) -> None:
    machine.installer.begin(KEY, {})
    assert machine.run() == "no package is to be installed"


def test_a_refusal_of_the_service_itself_is_the_newest_outcome(machine: Machine) -> None:
    machine.begin()
    machine.run()
    machine.installer.refuse("uid/2", "no server has\nthe package")
    os.utime(machine.installer.folder / "refused", (2e9, 2e9))
    outcome = machine.installer.read_outcome()
    assert outcome is not None
    assert (outcome.key, outcome.problem) == ("uid/2", "no server has the package")


def test_a_service_that_runs_from_elsewhere_says_so(machine: Machine, tmp_path: Path) -> None:
    here = DebianInstaller("agent", machine.base, machine.tree, str(tmp_path / "clone/.venv"), tmp_path)
    assert here.find_obstacle() == "this agent doesn't run from the package weft-agent: upgrade it by hand"
    (tmp_path / "weft-agent-install.path").symlink_to("/dev/null")
    masked = DebianInstaller("agent", machine.base, machine.tree, str(machine.tree), tmp_path, units=tmp_path)
    assert masked.find_obstacle().startswith(
        "weft-agent-install.path is masked on this machine: upgrade weft-agent by hand"
    )
    without = DebianInstaller("agent", machine.base, machine.tree, str(machine.tree), tmp_path / "none")
    assert "this machine's systemd doesn't start" in without.find_obstacle()
