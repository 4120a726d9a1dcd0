"""Traces of a machine's own identity in a Linux system on a disk: found for an image that others are made from. Pure, but for what
``read`` does.

The rules are in the guide (docs/guide/images.md). Links are followed within the file system, and never out of it.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Literal

import msgspec

from weft.backup.files.ext4 import ROOT_INODE, FileSystem, Inode, damaged
from weft.backup.files.partitions import Partition
from weft.backup.files.walk import show, walk
from weft.objects.errors import DriverFailed, InvalidInput, NotFound

MOST_FOUND = 200_000
MOST_DEPTH = 64
MOST_NAME_BYTES = 65_536  # of a hostname's file
BOOT_BYTES = 64 << 20  # of a partition without a file system, where a boot loader may lie
CANT_CLEAN = "cantClean"
REMEDY = "clean the system in the VM itself, then create the image with --keep-identity"
_PLAIN = ("ext4", "FAT", "swap")
# What lies in a file system of its own that a machine boots from.
_BOOT = (
    *("lost+found", "grub*", "vmlinu*", "initr*", "config-*", "System.map*", "symvers*", ".vmlinuz*", "efi", "EFI"),
    *("extlinux", "loader", "dtb*", "memtest*"),
)
Act = Literal["remove", "empty"]
LOGS = "logs"  # of which links lead to what isn't one, such as a README


class Rule(msgspec.Struct, frozen=True):
    what: str
    act: Act
    path: str  # from the root; * within a name, and ** at the end: all that lies below


_OF_USERS = (
    ("users' SSH keys", ".ssh/**"),
    ("shell histories", ".*_history"),
    ("shell histories", ".history"),
    ("shell histories", ".lesshst"),
    ("shell histories", ".viminfo"),
)
RULES = (
    Rule("machine id", "empty", "/etc/machine-id"),
    Rule("machine id", "remove", "/var/lib/dbus/machine-id"),
    Rule("SSH host keys", "remove", "/etc/ssh/ssh_host_*"),
    Rule("SSH host keys", "remove", "/etc/dropbear/dropbear_*_host_key"),
    Rule("cloud-init's state", "remove", "/var/lib/cloud/**"),
    Rule("cloud-init's state", "remove", "/etc/netplan/50-cloud-init.yaml"),
    Rule("cloud-init's state", "remove", "/etc/network/interfaces.d/50-cloud-init*"),
    Rule("cloud-init's state", "remove", "/etc/NetworkManager/system-connections/cloud-init-*"),
    Rule("cloud-init's state", "remove", "/etc/systemd/network/10-cloud-init-*"),
    Rule("weft's state", "remove", "/var/lib/weft/seeded-*"),
    Rule("weft's state", "remove", "/var/lib/weft/user-data*"),
    Rule("DHCP leases", "remove", "/var/lib/dhcp/*"),
    Rule("DHCP leases", "remove", "/var/lib/dhclient/*"),
    Rule("DHCP leases", "remove", "/var/lib/dhcpcd/*"),
    Rule("DHCP leases", "remove", "/var/lib/NetworkManager/*.lease"),
    Rule("DHCP leases", "remove", "/var/lib/NetworkManager/secret_key"),
    Rule("random seed", "remove", "/var/lib/systemd/random-seed"),
    Rule("random seed", "remove", "/var/lib/systemd/credential.secret"),
    Rule("random seed", "remove", "/var/lib/random-seed"),
    Rule("random seed", "remove", "/var/lib/urandom/random-seed"),
    Rule("network rules", "remove", "/etc/udev/rules.d/*-persistent-net.rules"),
    Rule(LOGS, "remove", "/var/log/journal/**"),
    Rule(LOGS, "remove", "/var/crash/*"),
    Rule(LOGS, "remove", "/var/lib/systemd/coredump/*"),
    Rule(LOGS, "empty", "/var/log/**"),
    *(Rule(what, "remove", f"{home}/{path}") for home in ("/root", "/home/*") for what, path in _OF_USERS),
)
HOSTNAME = "hostname"  # emptied where it is the VM's name


class Trace(msgspec.Struct, frozen=True):
    """An inode to remove, or to empty, and which rule says so."""

    inode: int
    act: Act
    what: str


def find_system(parts: list[Partition]) -> list[Partition]:
    """The parts that may hold a system. Raises DriverFailed (``cantClean``) where one of the disk's can't be cleaned."""
    for part in parts:
        where = f"partition {part.number}" if part.number else "the disk"
        if part.holds not in _PLAIN and (part.holds or part.size > BOOT_BYTES or not part.number):
            raise _refuse(f"{where} has {part.holds or 'no file system that is known'}")
    found = [part for part in parts if part.holds == "ext4"]
    if not found:
        raise _refuse("the disk has no ext4 file system")
    return found


def find_traces(files: FileSystem, hostname: str) -> Iterator[Trace] | None:
    """Find what to clean in a system's root; None: it has none, and only boots one. Raises DriverFailed (``cantClean``)."""
    if _find(files, "/etc") is not None:
        return _Search(files).run(hostname)
    names = [name.decode(errors="replace") for name, _ in files.list_directory(files.inode(ROOT_INODE))]
    if strange := [name for name in names if not any(fnmatchcase(name, one) for one in _BOOT)]:
        raise _refuse(f"one of its ext4 file systems has {show(strange[0])[:60]}, and no system with /etc")
    return None


class _Search:
    def __init__(self, files: FileSystem) -> None:
        self._files = files
        self._found = dict[int, None]()

    def run(self, hostname: str) -> Iterator[Trace]:
        for rule in RULES:
            for trace in self._match(rule):
                if trace.inode not in self._found:
                    self._found[trace.inode] = None
                    if len(self._found) > MOST_FOUND:
                        raise _refuse(f"it has more than {MOST_FOUND} files to clean")
                    yield trace
        named = _find(self._files, "/etc/hostname")
        if named is not None and stat.S_ISREG(named.mode) and 0 < named.size <= MOST_NAME_BYTES:
            content = b"".join(self._files.read_file(named))[: named.size]
            if content.split() == [hostname.encode()]:
                yield Trace(named.number, "empty", HOSTNAME)

    def _match(self, rule: Rule) -> Iterator[Trace]:
        """Match what the rule is about, and the file that a link leads to. A file that is empty already needs nothing."""
        *way, last = rule.path.strip("/").split("/")
        for path, folder in self._expand(way):
            found = (
                self._list_below(path, folder, {folder.number}, 0) if last == "**" else self._list(path, folder, last)
            )
            for where, inode in found:
                if inode.is_directory and last != "**":
                    continue
                act, taken = rule.act, [inode]
                if inode.is_link and rule.what != LOGS:
                    target = _find(self._files, where)
                    taken += [target] if target is not None and stat.S_ISREG(target.mode) else []
                    act = "empty" if rule.path.endswith("/machine-id") else act  # the link stays
                for one in taken:
                    if act == "remove" or (stat.S_ISREG(one.mode) and one.size):
                        yield Trace(one.number, act, rule.what)

    def _expand(self, way: list[str]) -> list[tuple[str, Inode]]:
        """The folders at a path, whose names may have a *."""
        paths = [""]
        for name in way:
            if "*" not in name:
                paths = [f"{path}/{name}" for path in paths]
                continue
            folders = [(path, _find(self._files, path)) for path in paths]
            paths = [
                f"{path}/{entry.decode(errors='surrogateescape')}"
                for path, folder in folders
                if folder is not None and folder.is_directory
                for entry, _ in self._files.list_directory(folder)
                if fnmatchcase(entry.decode(errors="surrogateescape"), name)
            ]
        found = [(path, _find(self._files, path)) for path in paths]
        return [(path, one) for path, one in found if one is not None and one.is_directory and one.number != ROOT_INODE]

    def _list(self, path: str, folder: Inode, name: str) -> Iterator[tuple[str, Inode]]:
        for entry, number in self._files.list_directory(folder):
            where = entry.decode(errors="surrogateescape")
            if fnmatchcase(where, name):
                yield f"{path}/{where}", self._files.inode(number)

    def _list_below(self, path: str, folder: Inode, entered: set[int], depth: int) -> Iterator[tuple[str, Inode]]:
        if depth > MOST_DEPTH:
            raise damaged(f"its folders lie deeper than {MOST_DEPTH} in each other")
        for entry, number in self._files.list_directory(folder):
            where, inode = f"{path}/{entry.decode(errors='surrogateescape')}", self._files.inode(number)
            if inode.is_directory:
                if inode.number in entered or inode.number == ROOT_INODE:
                    raise damaged("a folder lies within itself")
                entered.add(inode.number)
                if len(entered) > MOST_FOUND:
                    raise _refuse(f"it has more than {MOST_FOUND} folders to clean")
                yield from self._list_below(where, inode, entered, depth + 1)
            yield where, inode


def _find(files: FileSystem, path: str) -> Inode | None:
    """The inode at ``path``, with links followed; None: there is none."""
    try:
        return walk(files, path)
    except (NotFound, InvalidInput):
        return None


def _refuse(why: str) -> DriverFailed:
    return DriverFailed(f"its identity can't be removed: {why}", reason=CANT_CLEAN, hint=REMEDY)
