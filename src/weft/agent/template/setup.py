"""The script that a copy of a booted machine runs instead of what its image does at a first boot: users, keys, the user's script.

Pure. It may run twice. Accounts are lines in files, since programs that write them are slow on emulated CPUs. The result is that of
cloud-init with the same users and keys.
"""

from __future__ import annotations

import hashlib
import shlex

from weft.kinds.allocation import AllocationSpec

DEFAULT_USER = "debian"  # that cloud-init makes too
_FIRST_ID = 1000
_ACCOUNT = """\
account() { # NAME ID
    grep -q "^$1:" /etc/passwd || echo "$1:x:$2:$2:$1:/home/$1:/bin/bash" >>/etc/passwd
    grep -q "^$1:" /etc/group || echo "$1:x:$2:" >>/etc/group
    grep -q "^$1:" /etc/shadow || echo "$1:!:19000:0:99999:7:::" >>/etc/shadow
    grep -q "^$1:" /etc/gshadow 2>/dev/null || echo "$1:!::" >>/etc/gshadow
    [ -d "/home/$1" ] || { mkdir -p "/home/$1"; cp -R /etc/skel/. "/home/$1" 2>/dev/null || :; chmod 0700 "/home/$1"; }
    [ ! -d /etc/sudoers.d ] || { echo "$1 ALL=(ALL) NOPASSWD:ALL" >"/etc/sudoers.d/90-$1"; chmod 0440 "/etc/sudoers.d/90-$1"; }
    keys "/home/$1/.ssh"
    chown -R "$2:$2" "/home/$1"
}
keys() { # FOLDER
    [ -z "$keys" ] || { mkdir -p -m 0700 "$1"; printf '%s\\n' "$keys" >"$1/authorized_keys"; chmod 0600 "$1/authorized_keys"; }
}
"""

_RUN = "/var/lib/weft/user-data; echo $? >/var/lib/weft/user-data.code"


def write_setup(spec: AllocationSpec, *, has_cloud_init: bool) -> str:
    """The script, after which cloud-init stays away; "" for a VM that needs none."""
    lines = [": >/etc/cloud/cloud-init.disabled"] if has_cloud_init else []
    if spec.users or spec.ssh_keys:
        names = [DEFAULT_USER, *(name for name in spec.users if name != DEFAULT_USER)]
        lines += [_ACCOUNT, f"keys={shlex.quote(chr(10).join(spec.ssh_keys))}"]
        lines += [f"account {shlex.quote(name)} {_FIRST_ID + index}" for index, name in enumerate(names)]
        lines.append("keys /root/.ssh")
    if spec.user_data:
        lines += [
            f"marker=/var/lib/weft/seeded-{hashlib.sha256(spec.user_data.encode()).hexdigest()}",  # as a boot of tiny leaves it
            "if [ ! -e $marker ]; then",
            "mkdir -p /var/lib/weft",
            f"printf %s {shlex.quote(spec.user_data)} >/var/lib/weft/user-data",
            "chmod 0700 /var/lib/weft/user-data",
            ": >$marker",
            f"(setsid sh -c {shlex.quote(_RUN)} </dev/null >/var/log/user-data.log 2>&1 &)",
            "fi",
        ]
    return "\n".join(["set -e", *lines, "exit 0", ""]) if lines else ""
