"""Machines with systemd and this machine's programs, in which packages are installed as on real ones: containers of
systemd-nspawn over copies of this root, or of another one, that are thrown away. They reach each other, and nothing else."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import time
from pathlib import Path

ADDRESS = "10.9.9.1"  # of the first machine of a network
ROUTE = "10.9.9.254"
# Services of this machine's packages that the other one has no use for.
MASKED = (
    *("etcd", "containerd", "docker-registry", "haproxy", "mosquitto", "postgresql", "prometheus", "victoria-metrics"),
    *("e2scrub_reap", "systemd-networkd-wait-online", "systemd-timesyncd"),
)
BOOT = """
set -e
place=$1; size=$2; network=$4; below=$6
mount -t tmpfs -o size=$size tmpfs "$place"
mkdir -p /run/systemd/nspawn; mount -t tmpfs tmpfs /run/systemd/nspawn  # removed at a reboot, and only from memory
cd "$place"; mkdir upper work root weft
mount -t overlay overlay -o lowerdir="$below",upperdir=upper,workdir=work root
: >root/etc/machine-id; echo "$5" >root/etc/hostname; rm -f root/var/lib/dbus/machine-id root/usr/sbin/policy-rc.d
for unit in {masked}; do ln -sf /dev/null root/etc/systemd/system/$unit.service; done
rm -rf root/var/lib/weft; mkdir -p root/var/lib/weft root/srv/given
export SYSTEMD_SECCOMP=0 SYSTEMD_NSPAWN_API_VFS_WRITABLE=yes
set +e
while nsenter --net=/run/netns/"$network" systemd-nspawn --quiet --directory=root --boot --register=no --keep-unit \\
    --capability=all --network-bridge=wan --machine="$5" --hostname="$5" \\
    --console=pipe --bind=/dev/net/tun --bind-ro="$3":/srv/given --bind="$place/weft":/var/lib/weft --tmpfs=/tmp
[ $? = 133 ]; do :; done  # it is rebooted
"""
# Control groups of version 1 are shown read-only in there, and the one of memory is bound from elsewhere. Beside a tree of version
# 2, which weft hides from crun, crun makes folders of its own in the folder of that tree.
PREPARE = """
mount -o remount,rw /sys/fs/cgroup
for group in cpu cpuacct cpuset memory pids freezer blkio devices; do
    [ -d /sys/fs/cgroup/$group ] || continue
    umount -l /sys/fs/cgroup/$group && mount -t cgroup -o $group cgroup /sys/fs/cgroup/$group
done
mknod /dev/loop-control c 10 237
for number in $(seq 0 63); do mknod /dev/loop$number b 7 $number; done
ip link set lo up
ip address add {address}/24 dev host0
ip link set host0 up
ip route add default via {route}
"""
# So that the same is done at each further boot, before anything of weft begins.
AGAIN = """
cat >/usr/local/sbin/prepare <<'END'
{prepare}
END
cat >/etc/systemd/system/prepare.service <<'END'
[Unit]
DefaultDependencies=no
After=local-fs.target
Before=weft-agent.service weft-server.service network-pre.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh /usr/local/sbin/prepare
[Install]
WantedBy=multi-user.target
END
systemctl daemon-reload && systemctl -q enable prepare
"""


class Network:
    """A network between machines, in a namespace of its own."""

    def __init__(self) -> None:
        self.name, self._machines = f"weft-pm{secrets.token_hex(3)}", 0
        subprocess.run(["ip", "netns", "add", self.name], check=True)
        lines = "ip link add wan type bridge && ip link set wan up && ip link set lo up"
        subprocess.run(["ip", "netns", "exec", self.name, "sh", "-c", lines], check=True)

    def next_address(self) -> str:
        self._machines += 1
        return f"10.9.9.{self._machines}"

    def close(self) -> None:
        subprocess.run(["ip", "netns", "delete", self.name], check=False)


class PackagedMachine:
    """``given`` is its folder /srv/given, ``size`` what fits onto its disk, as tmpfs has it, ``below`` the root that it copies."""

    def __init__(
        self, network: Network, folder: Path, given: Path, name: str = "m1", size: str = "3g", below: str = "/"
    ) -> None:
        self.name, self.address, self.place = name, network.next_address(), folder / name
        self.place.mkdir()
        boot = BOOT.format(masked=" ".join(MASKED))
        self._log = (folder / f"{name}.log").open("wb")
        argv = [
            "unshare",
            "--mount",
            "bash",
            "-c",
            boot,
            "boot",
            str(self.place),
            size,
            str(given),
            network.name,
            name,
            below,
        ]
        self._nspawn = subprocess.Popen(argv, stdout=self._log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        self._leader = self._find_leader()
        deadline = time.monotonic() + 120
        while self.run("systemctl is-system-running", check=False).stdout.strip() not in ("running", "degraded"):
            assert time.monotonic() < deadline, self.run("systemctl list-jobs", check=False).stdout
            time.sleep(0.2)
        prepare = PREPARE.format(address=self.address, route=ROUTE)
        self.run(prepare)
        self.run(AGAIN.format(prepare=prepare))

    def run(self, lines: str, *, check: bool = True, seconds: float = 300) -> subprocess.CompletedProcess[str]:
        """Run a shell's lines in it. Raises AssertionError if they fail, with what they said."""
        argv = ["nsenter", "-t", str(self._leader), *"-m -u -i -n -p -C --".split()]
        argv += ["env", "-i", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"]
        run = subprocess.run([*argv, "bash", "-c", lines], capture_output=True, text=True, timeout=seconds)
        assert not check or run.returncode == 0, (lines, run.stdout[-3000:], run.stderr[-3000:])
        return run

    def ask(self, line: str) -> str:
        return self.run(line).stdout.strip()

    def begin(self, lines: str) -> subprocess.Popen[str]:
        """Run a shell's lines in it meanwhile."""
        argv = ["nsenter", "-t", str(self._leader), *"-m -u -i -n -p -C --".split(), "bash", "-c", lines]
        return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def until(self, line: str, seconds: float = 60) -> str:
        """Its output, once it succeeds."""
        deadline = time.monotonic() + seconds
        while (run := self.run(line, check=False)).returncode:
            assert time.monotonic() < deadline, (line, run.stdout[-2000:], run.stderr[-2000:])
            time.sleep(0.5)
        return run.stdout.strip()

    def await_reboot(self, seconds: float = 120) -> None:
        """Wait until its first process is another one."""
        deadline, former = time.monotonic() + seconds, self._leader
        while Path(f"/proc/{former}").exists():
            assert time.monotonic() < deadline, "it didn't go down"
            time.sleep(0.2)
        self._leader = self._find_leader()

    def close(self) -> None:
        """End it: with its first process all others end."""
        if self._nspawn.poll() is None:
            os.kill(self._leader, 9)
        self._nspawn.wait(30)
        self._log.close()
        shutil.rmtree(self.place, ignore_errors=True)

    def _find_leader(self) -> int:
        """Process id of its first process."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            assert self._nspawn.poll() is None, Path(self._log.name).read_text()
            for child in _list_children(self._nspawn.pid):
                for leader in _list_children(child):
                    if Path(f"/proc/{leader}/comm").read_text().strip() == "systemd":
                        return leader
            time.sleep(0.1)
        raise AssertionError(Path(self._log.name).read_text())


def _list_children(process: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:
        return []
