"""A copy of a machine's disk loses what is that machine's own, down to its bytes, keeps everything else, and is refused where that
can't be done."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from weft.backup.files.identity import RULES
from weft.backup.process import clean as cleaning
from weft.backup.process.clean import clean
from weft.contracts.clock import SystemClock
from weft.objects.errors import DriverFailed

MIB = 1 << 20
pytestmark = pytest.mark.skipif(not shutil.which("debugfs"), reason="needs debugfs of e2fsprogs")
OWN = {
    "var/lib/dbus/machine-id": "5ecre7-dbus",
    "etc/ssh/ssh_host_ed25519_key": "5ecre7-key",
    "etc/ssh/ssh_host_ed25519_key.pub": "5ecre7-pub",
    "var/lib/cloud/instances/i-1/user-data.txt": "5ecre7-user-data",
    "var/lib/cloud/data/instance-id": "5ecre7-i-1",
    "root/.ssh/authorized_keys": "5ecre7-root",
    "home/ann lee/.ssh/authorized_keys": "5ecre7-ann",
    "home/ann lee/.bash_history": "5ecre7-history",
    "var/lib/dhcp/dhclient.leases": "5ecre7-lease",
    "var/lib/systemd/random-seed": "5ecre7-seed",
    "var/lib/weft/seeded-1": "5ecre7-seeded",
    "var/log/journal/0123/system.journal": "5ecre7-journal",
    "etc/udev/rules.d/70-persistent-net.rules": "5ecre7-nic",
}
EMPTIED = {
    "etc/machine-id": "0123-5ecre7\n",
    "etc/hostname": "web\n",
    "var/log/syslog": "5ecre7-log " * 1000,
    "var/log/nginx/access.log": "5ecre7-access",
}
KEPT = {
    "etc/ssh/sshd_config": "PermitRootLogin no\n",
    "etc/os-release": "ID=debian\n",
    "home/ann lee/notes": "mine",
    "srv/app": "app" * 10_000,
    "var/lib/app/random-seed": "not the system's",
}


def make_tree(folder: Path, files: Mapping[str, str]) -> Path:
    tree = folder / "tree"
    for path, content in files.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text(content)
    return tree


def make_disk(folder: Path, tree: Path, start: int = 0, form: str = "ext4") -> Path:
    """A disk with the tree as an ext4, whole, or as a partition of an MBR before a swap partition."""
    path, size = folder / "disk.raw", 64 * MIB
    with path.open("wb") as out:
        out.truncate(start + size + (8 * MIB if start else 0))
    where = [f"offset={start}"] if start else []
    options = ["-E", ",".join([*where, "root_owner=0:0"]), "-b", "4096", "-g", "2048", "-d", str(tree), str(path)]
    subprocess.run(["mke2fs", "-q", "-F", "-t", form, *options, f"{size // 1024}k"], check=True)
    if start:
        with path.open("r+b") as disk:
            for number, (kind, at, length) in enumerate([(0x83, start, size), (0x82, start + size, 8 * MIB)]):
                disk.seek(446 + 16 * number)
                disk.write(struct.pack("<B3xB3xII", 0, kind, at // 512, length // 512))
            disk.seek(510)
            disk.write(b"\x55\xaa")
            disk.seek(start + size + 4086)
            disk.write(b"SWAPSPACE2")
            disk.seek(start + size + 2 * MIB)
            disk.write(b"5ecre7-memory")
    return path


def ask_debugfs(disk: Path, *commands: str, start: int = 0) -> str:
    place = f"{disk}?offset={start}" if start else str(disk)
    argv = ["debugfs", "-w", "-f", "-", place]
    return subprocess.run(argv, input="\n".join(commands), check=True, capture_output=True, text=True).stdout


def write_into_journal(disk: Path, start: int) -> None:
    """What stays of a file that was written with data=journal."""
    blocks = ask_debugfs(disk, "blocks <8>", start=start).split()
    with disk.open("r+b") as file:
        file.seek(start + int(blocks[-1]) * 4096)
        file.write(b"5ecre7-journalled")


def read_tree(disk: Path, folder: Path, start: int = 0) -> dict[str, str]:
    """What e2fsprogs read of the disk."""
    folder.mkdir()
    place = f"{disk}?offset={start}" if start else str(disk)
    subprocess.run(["debugfs", "-R", f"rdump / {folder}", place], check=True, capture_output=True)
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("start", "form"), [(0, "ext4"), (MIB, "ext4"), (0, "ext3")])
def test_what_is_a_machines_own_is_gone_from_every_byte_and_the_rest_is_as_it_was(
    tmp_path: Path, start: int, form: str
) -> None:
    disk = make_disk(tmp_path, make_tree(tmp_path, {**OWN, **EMPTIED, **KEPT}), start, form)
    write_into_journal(disk, start)
    cleaned = clean(str(disk), "web")
    assert {"machine id", "SSH host keys", "cloud-init's state", "users' SSH keys", "hostname", "logs"} <= set(cleaned)
    assert read_tree(disk, tmp_path / "after", start) == {**dict.fromkeys(EMPTIED, ""), **KEPT}
    assert b"5ecre7" not in disk.read_bytes()
    place = f"{disk}?offset={start}" if start else str(disk)
    assert subprocess.run(["e2fsck", "-f", "-n", place], check=False, capture_output=True).returncode == 0
    assert clean(str(disk), "web") == []


def test_a_name_that_the_vm_does_not_have_stays_and_links_lead_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "ssh_host_rsa_key").write_text("the node's")
    files = {
        "usr/keys/ssh_host_rsa_key": "5ecre7",
        "srv/id": "5ecre7",
        "srv/ed25519": "5ecre7",
        "usr/README": "of logs",
    }
    tree = make_tree(tmp_path, {"etc/hostname": "shop\n", **files})
    (tree / "etc" / "machine-id").symlink_to("../srv/id")
    (tree / "usr" / "keys" / "ssh_host_ed25519_key").symlink_to("/srv/ed25519")
    (tree / "etc" / "ssh").symlink_to("/usr/keys")
    (tree / "root").symlink_to(tmp_path / "outside")
    (tree / "var").symlink_to("../../../..")
    (tree / "log").mkdir()
    (tree / "log" / "README").symlink_to("../usr/README")
    disk = make_disk(tmp_path, tree)
    assert clean(str(disk), "web") == ["machine id", "SSH host keys"]
    left = {"etc/hostname": "shop\n", "etc/machine-id": "", "srv/id": ""}
    assert read_tree(disk, tmp_path / "after") == {**left, "usr/README": "of logs", "log/README": "of logs"}
    assert b"5ecre7" not in disk.read_bytes()
    assert (tmp_path / "outside" / "ssh_host_rsa_key").read_text() == "the node's"


@pytest.mark.parametrize(
    ("at", "mark", "why"),
    [
        (512, b"LABELONE", "LVM"),
        (0, b"LUKS\xba\xbe", "LUKS"),
        (0, b"XFSB", "xfs"),
        (0, b"", "no file system that is known"),
    ],
)
def test_a_disk_that_cannot_be_cleaned_is_refused_with_the_remedy(
    tmp_path: Path, at: int, mark: bytes, why: str
) -> None:
    path = tmp_path / "disk.raw"
    with path.open("wb") as disk:
        disk.truncate(8 * MIB)
        disk.seek(at)
        disk.write(mark)
    with pytest.raises(DriverFailed, match=why) as problem:
        clean(str(path))
    assert problem.value.token == "cantClean" and "--keep-identity" in str(problem.value.hint)


@pytest.mark.parametrize(
    ("said", "token"), [("No space left on device", "noSpace"), ("Input/output error", "driverFailed")]
)
def test_a_node_that_fails_at_a_check_is_no_damage_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, token: str
) -> None:
    disk, run = make_disk(tmp_path, make_tree(tmp_path, OWN)), cleaning._run
    script = f"echo 'Error writing block 9 ({said}).'; head -c 200000 /dev/zero; exit 12"
    monkeypatch.setattr(cleaning, "_run", lambda disk, argv, commands="": run(disk, ["sh", "-c", script]))
    with pytest.raises(DriverFailed, match="can't be checked") as problem:
        clean(str(disk))
    assert problem.value.token == token and "node" in str(problem.value.hint)


@pytest.mark.parametrize("files", [{"ann/.ssh/id_rsa": "5ecre7"}, {"grub/grub.cfg": "", "vmlinuz-6.1": ""}])
def test_a_disk_without_a_system_on_it_is_refused(tmp_path: Path, files: dict[str, str]) -> None:
    disk = make_disk(tmp_path, make_tree(tmp_path, files))
    with pytest.raises(DriverFailed, match="system") as problem:
        clean(str(disk))
    assert problem.value.token == "cantClean"


def test_a_damaged_file_system_is_refused(tmp_path: Path) -> None:
    disk = make_disk(tmp_path, make_tree(tmp_path, {"etc/machine-id": "0123"}))
    with disk.open("r+b") as file:
        file.seek(1024 + 24)
        file.write(b"\xff" * 400)
    with pytest.raises(DriverFailed) as problem:
        clean(str(disk))
    assert problem.value.token == "cantClean"


def test_a_file_system_that_grows_when_it_is_mended_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """e2fsck gives each of the files that claim the same blocks a copy of them."""
    monkeypatch.setattr(cleaning, "MOST_GROWTH_BYTES", 4 * MIB)
    tree = make_tree(tmp_path, {"etc/machine-id": "0123", "srv/0": "shared " * (MIB // 7)})
    for number in range(1, 20):
        (tree / "srv" / str(number)).touch()
    disk = make_disk(tmp_path, tree, form="ext3")
    (shared,) = re.findall(r"\(IND\):(\d+)", ask_debugfs(disk, "stat /srv/0"))
    for number in range(1, 20):
        ask_debugfs(disk, f"sif /srv/{number} block[IND] {shared}", f"sif /srv/{number} size {MIB}")
    with pytest.raises(DriverFailed, match="much more space"):
        clean(str(disk))


def test_the_programs_reach_no_other_process(tmp_path: Path) -> None:
    disk = make_disk(tmp_path, make_tree(tmp_path, {"etc/machine-id": "0123"}))
    ask = "import ctypes; raise SystemExit(ctypes.CDLL(None).ptrace(0, 0, 0, 0) == -1)"  # to be traced: always allowed
    with disk.open("r+b") as file:
        assert subprocess.run([sys.executable, "-c", ask], check=False).returncode == 0
        assert cleaning._run(cleaning._Disk(file.fileno()), ["python3", "-c", ask]) == 1


def test_all_that_is_done_to_a_disk_has_one_bound_of_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many checks and partitions there are: here each program takes a second."""
    disk, now, run = make_disk(tmp_path, make_tree(tmp_path, {**OWN, **EMPTIED})), [0.0], cleaning._run
    monkeypatch.setattr(SystemClock, "elapsed", lambda self: now[0])
    monkeypatch.setattr(cleaning, "SECONDS", 2.5)

    def take_a_second(disk: Any, argv: list[str], commands: str = "") -> int:
        now[0] += 1.0
        return run(disk, argv, commands)

    monkeypatch.setattr(cleaning, "_run", take_a_second)
    with pytest.raises(DriverFailed, match=r"e2fsck did not end within 2\.5 s"):
        clean(str(disk), "web")


@pytest.mark.parametrize("dirty", [1, 9])
def test_free_blocks_are_holes_only_once_a_check_finds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dirty: int
) -> None:
    """e2fsck discards nothing in a run that mends something."""
    run, left = cleaning._run, [dirty]

    def mend(disk: Any, argv: list[str], commands: str = "") -> int:
        left[0] -= "discard" in argv
        return 1 if "discard" in argv and left[0] >= 0 else run(disk, argv, commands)

    monkeypatch.setattr(cleaning, "_run", mend)
    disk = make_disk(tmp_path, make_tree(tmp_path, {**OWN, **EMPTIED}))
    if dirty == 1:
        clean(str(disk), "web")
        assert b"5ecre7" not in disk.read_bytes()
    else:
        with pytest.raises(DriverFailed, match="can't be mended"):
            clean(str(disk), "web")


def test_the_guide_lists_every_rule() -> None:
    guide = (Path(__file__).parents[4] / "docs" / "guide" / "images.md").read_text()
    table = dict(line.strip("| ").split(" | ", 1) for line in guide.splitlines() if line.startswith("| "))
    for rule in RULES:
        told = next(text for what, text in table.items() if what.split(",")[0] == rule.what)
        path = rule.path.rpartition("/")[2] if rule.what == "shell histories" else rule.path
        assert f"`{path}`" in told, rule
