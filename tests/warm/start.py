#!/usr/bin/python3 -SE
"""Stands in QEMU's place on the PATH: starts it with a saved machine's memory where one of its kind was saved.

It runs as the guest's own user with no rights, so it only reads what the keeper has made, and leaves a note of what it
didn't find: see tests/warm/__init__.py. Every failure is a boot as without it.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys

QEMU = "/usr/bin/qemu-system-x86_64"
FILE = "opt/weft.warm"  # as in barrier.c
ALONE = {"-nodefaults", "-no-user-config", "-S", "-no-reboot", "-enable-kvm"}
# What the machine that is saved does without: whose it is, whom it talks to, and what isn't part of its state.
LEFT_OUT = {"-add-fd", "-name", "-uuid", "-sandbox", "-pidfile", "-msg", "-vnc", "-kernel", "-initrd", "-append"}
MAC = "52:54:00:fe:d1:%02x"  # of the machine that is saved; each guest's own is put in their place
NAMED = "weft.hostname="
NAME = "z" * 63  # the same for its name, which is no longer than this
IDENTIFIED = "weft.identity="  # of one that was made of a snapshot
IDENTITY = "0123456789abcdef" * 2  # the same for that, which is as long
SAMPLE = 1 << 16


def pairs(words: list[str]) -> list[tuple[str, str]]:
    """The options with their values; an option that stands alone has an empty one."""
    rest = iter(words)
    return [(word, "" if word in ALONE else next(rest, "")) for word in rest]


def value_of(options: list[tuple[str, str]], name: str) -> str | None:
    return next((value for option, value in options if option == name), None)


def is_known(options: list[tuple[str, str]]) -> bool:
    """Whether it is a machine that boots a kernel, and has nothing whose state lies outside of it."""
    names = {option for option, _ in options}
    if not {"-kernel", "-initrd", "-append"} <= names or names & {"-incoming", "-S", "-loadvm", "-enable-kvm"}:
        return False
    if any(option == "-object" and value.startswith("secret") for option, value in options):
        return False  # its disk is encrypted, and a machine with nothing behind its devices has no key for it
    return not any(
        "vfio" in value or "mem-path" in value or "kvm" in value or "pflash" in value for _, value in options
    )


def describe(options: list[tuple[str, str]]) -> tuple[list[str], list[str]]:
    """The command of the machine that is saved, without kernel and command line, and the NICs' MACs of the one asked for.
    It has the same devices in the same places, with nothing behind them."""
    words: list[str] = []
    macs: list[str] = []
    for option, value in options:
        if option in LEFT_OUT:
            continue
        if option == "-chardev":
            name = dict(part.partition("=")[::2] for part in value.split(","))["id"]
            value = f"null,id={name}"
        elif option == "-blockdev":
            node = json.loads(value)
            read_only = {"read-only": True} if node.get("read-only") else {}
            number = words.count("-blockdev")
            value = json.dumps({"driver": "null-co", "size": 1 << 30, "node-name": f"n{number}", **read_only})
        elif option == "-netdev":
            value = f"hubport,id=h{len(macs)},hubid={len(macs)}"
        elif option == "-device":
            number = words.count("-blockdev") - 1
            parts = []
            for part in value.split(","):
                key, sign, what = part.partition("=")
                if key == "drive":
                    what = f"n{number}"
                elif key == "serial":
                    what = f"s{number}"
                elif key == "netdev":
                    what = f"h{len(macs)}"
                elif key == "mac":
                    macs.append(what)
                    what = MAC % (len(macs) - 1)
                elif key == "id" and what.startswith(("blk-", "nic-", "cd-")):
                    what = f"d{words.count('-device')}"
                parts.append(key + sign + what)
            value = ",".join(parts)
        words += [option] if option in ALONE else [option, value]
    return words, macs


def split_cmdline(line: str) -> tuple[str, str, str]:
    """The command line of the machine that is saved, and name and identity of the one asked for; "": it has none."""
    words, name, identity = [], "", ""
    for word in line.split():
        if word.startswith(NAMED):
            name, word = word.removeprefix(NAMED), NAMED + NAME
        elif word.startswith(IDENTIFIED) and len(word) == len(IDENTIFIED + IDENTITY):
            identity, word = word.removeprefix(IDENTIFIED), IDENTIFIED + IDENTITY
        words.append(word)
    return " ".join(words), name, identity


def digest(words: list[str], line: str, files: list[str]) -> str:
    seen = hashlib.sha256(json.dumps([words, line]).encode())
    for path in files:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            for at in (0, max(0, size // 2), max(0, size - SAMPLE)):
                file.seek(at)
                seen.update(file.read(SAMPLE))
            seen.update(str(size).encode())
    return seen.hexdigest()[:20]


def create(path: str) -> int:
    """A descriptor that writes it; -1: it is there."""
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return -1


def ask(folder: str, key: str, words: list[str], line: str, files: list[str]) -> None:
    """A note to the keeper by the second of its kind, unless there is one: more than half of the kinds have one guest only."""
    note = os.path.join(folder, "wanted", key)
    if create(f"{note}.once") >= 0 or (number := create(note)) < 0:
        return
    paths = [os.readlink(path) if path.startswith("/proc/") else path for path in files]
    with open(number, "w") as file:
        json.dump({"words": words, "line": line, "files": paths, "root": f"/proc/{os.getppid()}/root"}, file)


def changes(machine: list[str], line: str) -> list[bytes]:
    """What is in the saved state that isn't the guest's: its name, its identity if it has one, then each NIC's MAC."""
    nics = sum("mac=" in word for word in machine)
    identity = [IDENTITY.encode()] if IDENTIFIED + IDENTITY in line else []
    return [NAME.encode(), *identity, *(raw(MAC % number) for number in range(nics))]


def copy_state(state: str, macs: list[str], name: str, identity: str) -> int:
    """A descriptor with the saved machine's state, in which its NICs have these MACs, and its command line that name and that
    identity."""
    with open(state + ".places") as file:
        places = json.load(file)
    copy = os.memfd_create("state", 0)  # QEMU inherits it
    with open(state, "rb") as file:
        while os.sendfile(copy, file.fileno(), None, 1 << 30):
            pass
    identities = [identity.encode()] if identity else []
    for new, found in zip([name.ljust(len(NAME)).encode(), *identities, *map(raw, macs)], places, strict=True):
        for at in found:
            os.pwrite(copy, new, at)
    os.lseek(copy, 0, os.SEEK_SET)
    return copy


def raw(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def plan(words: list[str]) -> list[str]:
    """The command instead of ``words``: the same, from a saved machine's memory, if there is one of its kind."""
    options = pairs(words)
    if not is_known(options):
        return words
    folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    machine, macs = describe(options)
    line, name, identity = split_cmdline(value_of(options, "-append") or "")
    files = [value_of(options, "-kernel") or "", value_of(options, "-initrd") or ""]
    key = digest(machine, line, files)
    state = os.path.join(folder, "saved", key)
    if not os.path.exists(state):
        ask(folder, key, machine, line, files)
        return words
    return [*words, "-fw_cfg", f"name={FILE},string=go", "-incoming", f"fd:{copy_state(state, macs, name, identity)}"]


if __name__ == "__main__":
    command = sys.argv[1:]
    try:
        command = plan(command)
    except Exception as problem:  # whatever it is, the guest can boot
        print(f"warm: {problem!r}", file=sys.stderr)
    os.execv(QEMU, [QEMU, *command])
