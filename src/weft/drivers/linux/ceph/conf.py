"""A client's ceph.conf: where the cluster is and the user's key, as one text that needs no other file.

QEMU runs as a user that can open neither ceph.conf nor the keyring, so it is given this text as an open file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from weft.objects.errors import DriverFailed

# Where else a client would look for files or leave some; the key is in the text.
_LEFT_OUT = (
    "keyring",
    "keyfile",
    "log_file",
    "admin_socket",
    "run_dir",
    "pid_file",
    "crash_dir",
    "mon_cluster_log_file",
)
_QUIET = {"log_file": "", "log_to_stderr": "false", "err_to_stderr": "true", "admin_socket": ""}
_PLACES = ("/etc/ceph/ceph.{name}.keyring", "/etc/ceph/ceph.keyring", "/etc/ceph/keyring")


def read_parts(path: str) -> dict[str, dict[str, str]]:
    """A ceph.conf's settings by section. Raises DriverFailed."""
    return _parse(_read(path))


def find_setting(parts: dict[str, dict[str, str]], sections: Sequence[str], name: str) -> str:
    """The setting in the first of ``sections`` that has it, or ""."""
    return next((parts[section][name] for section in sections if name in parts.get(section, {})), "")


def read_settings(path: str, user: str) -> dict[str, str]:
    """Read the settings of this user's client from ceph.conf. Raises DriverFailed."""
    settings: dict[str, str] = {}
    parts = read_parts(path)
    for part in ("global", "client", f"client.{user}"):
        settings.update(parts.get(part, {}))
    return settings


def write_client_conf(path: str, user: str) -> str:
    """Raises DriverFailed for a cluster that isn't named or a key that isn't there."""
    settings = read_settings(path, user)
    if not settings.get("mon_host"):
        raise DriverFailed(f"{path} names no mon_host: no monitors to ask", hint="copy ceph.conf from the Ceph cluster")
    kept = {name: value for name, value in settings.items() if name not in _LEFT_OUT}
    lines = [f"{name} = {value}" for name, value in {**kept, **_QUIET, "key": find_key(settings, user)}.items()]
    return "\n".join(["[global]", *lines, ""])


def find_key(settings: dict[str, str], user: str) -> str:
    """Raises DriverFailed."""
    if settings.get("key"):
        return settings["key"]
    name = f"client.{user}"
    named = settings.get("keyring", ",".join(_PLACES)).replace("$cluster", "ceph").replace("$name", name)
    places = [place.strip().format(name=name) for place in named.split(",")]
    for place in places:
        if Path(place).exists() and (key := _parse(_read(place)).get(name, {}).get("key")):
            return key
    raise DriverFailed(
        f"no key of Ceph's user {name} in {' or '.join(places)}",
        hint=f"ceph auth get {name} -o {places[0]}, or name another with user=",
    )


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except (OSError, UnicodeDecodeError) as problem:
        why = problem.strerror if isinstance(problem, OSError) else "it must be text"
        raise DriverFailed(f"{path} can't be read: {why}", hint="copy it from the Ceph cluster") from problem


def _parse(text: str) -> dict[str, dict[str, str]]:
    """Options by section. Ceph takes ``mon host``, ``mon-host`` and ``mon_host`` for the same."""
    parts: dict[str, dict[str, str]] = {}
    part = parts.setdefault("global", {})
    for line in text.replace("\\\n", " ").splitlines():
        line = line.strip()
        if line.startswith("[") and line.endswith("]"):
            part = parts.setdefault(line[1:-1].strip(), {})
        elif line and line[0] not in "#;":
            name, _, value = line.partition("=")
            value = value.split(" #")[0].split(" ;")[0].strip().strip('"')
            part[name.strip().replace(" ", "_").replace("-", "_")] = value
    return parts
