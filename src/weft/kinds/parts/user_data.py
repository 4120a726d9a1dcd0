"""The user data of a VM on a container image: lines that say what to run, as ``images/microvm/vm.c`` reads them. Pure.

``command`` and ``arg`` replace the image's entrypoint and cmd; ``env``, ``user``, ``cwd`` are beside the image's; ``mount`` says
where a volume goes, ``restart on-failure`` that a process that fails begins again. ``keep`` is one line of JSON that the VM passes
over.
"""

from __future__ import annotations

from typing import Any

import msgspec

from weft.objects.errors import InvalidInput

MOST_CHARACTERS = 65536  # of a VM's user data
_ONE = ("user", "cwd", "restart", "keep")
_MANY = ("command", "arg", "env", "mount")


class Process(msgspec.Struct, kw_only=True):
    """The content of the lines."""

    command: list[str] = []
    args: list[str] = []
    env: dict[str, str] = {}
    user: str = ""
    cwd: str = ""
    mounts: list[str] = []  # VOLUME:/PATH[:ro]
    restart: str = ""
    keep: dict[str, Any] = {}  # any JSON object


def write_process(process: Process) -> str:
    """The lines that say it."""
    records = [("command", word) for word in process.command] + [("arg", word) for word in process.args]
    records += [("env", f"{name}={value}") for name, value in process.env.items()]
    records += [(word, value) for word, value in (("user", process.user), ("cwd", process.cwd)) if value]
    records += [("mount", mount) for mount in process.mounts]
    records += [("restart", process.restart)] if process.restart else []
    records += [("keep", msgspec.json.encode(process.keep).decode())] if process.keep else []
    return "".join(f"{word} {_escape(value)}\n" for word, value in records)


def read_process(text: str, field: str = "spec.user_data") -> Process:
    """Read the lines. Raises InvalidInput, with ``field``, for lines that a VM wouldn't understand."""
    many: dict[str, list[str]] = {word: [] for word in _MANY}
    one: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), 1):
        record = _unescape(line)
        if not record or record.startswith("#"):
            continue
        word, _, value = record.partition(" ")
        if word in _MANY:
            many[word].append(value)
        elif word in _ONE:
            one[word] = value
        else:
            raise InvalidInput(
                f"{field}: line {number}: {word[:60]!r} is not a known word",
                field=field,
                hint=f"one of {', '.join(sorted((*_MANY, *_ONE)))}",
            )
    pairs = (pair.partition("=") for pair in many["env"])
    return Process(
        command=many["command"],
        args=many["arg"],
        env={name: value for name, sign, value in pairs if sign},
        user=one.get("user", ""),
        cwd=one.get("cwd", ""),
        mounts=many["mount"],
        restart=one.get("restart", ""),
        keep=_read_keep(one.get("keep", "")),
    )


def _read_keep(text: str) -> dict[str, Any]:
    """Text without our first line is ignored, as the VM does."""
    try:
        return msgspec.json.decode(text, type=dict[str, Any]) if text else {}
    except msgspec.DecodeError:
        return {}


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n")


def _unescape(line: str) -> str:
    """A backslash at the very end stands for itself."""
    parts, at = [], 0
    while (sign := line.find("\\", at)) >= 0 and sign + 1 < len(line):
        parts += [line[at:sign], "\n" if line[sign + 1] == "n" else line[sign + 1]]
        at = sign + 2
    return "".join([*parts, line[at:]])
