"""An etcd of a server's own: one member, kept by ``weft server --store etcd`` in ``STATE/etcd``.

It listens on sockets in that folder, which is the server's alone to enter, since etcd asks nobody who they are.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from weft.objects.errors import Unavailable

_CLIENT, _PEER = "client:0", "peer:0"
_LONGEST_PATH_BYTES = 107
BROKEN = "member/wal/*.broken"  # copies of what etcd wrote of its log while the disk was full; etcd keeps each for ever
QUOTA_BYTES, NO_QUOTA = 4 << 30, -1


def find_socket(state: Path) -> str:
    """The path at which the server in ``state`` has its etcd. Raises Unavailable when no socket can have it."""
    path = str((state / "etcd" / _CLIENT).absolute())
    if len(os.fsencode(path)) > _LONGEST_PATH_BYTES:
        raise Unavailable(
            f"socket path {path} is longer than {_LONGEST_PATH_BYTES} bytes",
            hint="use a --state folder with a shorter path",
        )
    return path


def plan_etcd(state: Path, quota_bytes: int) -> list[str]:
    """The command that runs it in the foreground. Raises Unavailable when there is no etcd on this machine."""
    program = find_etcd()
    folder = str((state / "etcd").absolute())
    client, peer = f"unix://{_CLIENT}", f"unix://{_PEER}"
    # etcd takes a socket's name, not a path: it must be started in the folder. What a killed one left is in its way.
    enter = f'mkdir -p -m 700 "$0" && cd "$0" && rm -f client:* peer:* data/{BROKEN} && exec "$@"'
    return [
        *("/bin/sh", "-c", enter, folder),
        *(program, "--name", "weft", "--data-dir", f"{folder}/data"),
        *("--listen-client-urls", client, "--advertise-client-urls", client),
        *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"weft={peer}"),
        *("--quota-backend-bytes", str(quota_bytes), "--snapshot-count", "10000"),
    ]


def find_etcd() -> str:
    """The program. Raises Unavailable when it isn't installed."""
    program = shutil.which("etcd")
    if program is None:
        raise Unavailable("the store needs the program etcd", hint="apt-get install etcd-server")
    return program
