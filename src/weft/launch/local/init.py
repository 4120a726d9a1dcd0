"""A local node's first process, `weft init NODE --state DIR`: the node lives as long as it does.

Started on the host it makes the node's namespaces and leaves its child in them as process 1. That gives the node its
own /proc, /sys and /run/netns, starts the node's agent once the wire is in (command from DIR/nodes/NODE/agent.json),
starts it again when it dies, and so what runs beside it (a containerd), and reaps what others leave behind. Of logs that
have grown long it keeps the end. Guests daemonise, so they become its children when their starter ends, and killing the
agent harms none. SIGKILL here is the power cut; SIGTERM ends the agent first. It stays resident for every node, so it
imports little, and nothing from weft.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import sys

CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWNET = 0x00020000, 0x20000000, 0x40000000
MS_BIND, MS_MOVE, MS_REC, MS_SLAVE = 4096, 8192, 16384, 1 << 19
MNT_DETACH = 2
BACKOFF_SECONDS, BACKOFF_LIMIT_SECONDS, SETTLED_SECONDS = 0.5, 5.0, 20.0
POLL_SECONDS, STOP_SECONDS = 0.1, 10.0
LOGS_SECONDS = 30.0  # at the logs
LOG_LIMIT_BYTES, LOG_KEPT_BYTES = 16 << 20, 1 << 20
NEVER = float("inf")
SIGNALS = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT)


def launch(node: str, state: str) -> int:
    """Make the namespaces, become process 1 in them, print its number as the host sees it once it serves."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWPID) != 0:
        reason = os.strerror(ctypes.get_errno())
        print(f"can't create namespaces: {reason}; root with CAP_SYS_ADMIN is needed", file=sys.stderr)
        return 1
    trouble, its_trouble = os.pipe()
    pid = os.fork()
    if pid == 0:
        become_first_process(node, state, its_trouble)
        return serve(node, state)
    os.close(its_trouble)
    failure = os.read(trouble, 4096).decode()
    print(failure or pid, file=sys.stderr if failure else sys.stdout)
    return 1 if failure else 0


def become_first_process(node: str, state: str, trouble: int) -> None:
    """Leave the starter's session and mounts; a failure is written to ``trouble``, whose closing means success."""
    try:
        os.setsid()
        os.chdir("/")
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        log = os.open(f"{state}/log/init-{node}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        make_private_mounts()
    except OSError as error:
        os.write(trouble, f"node {node}: {error}".encode())
        os._exit(1)
    os.close(trouble)


def serve(node: str, state: str) -> int:
    """Be process 1 until a signal stops it."""
    report(f"node {node} is up")
    agent, delay, start_at, started_at = 0, 0.0, 0.0, 0.0
    beside, beside_at = 0, NEVER
    while True:
        if not agent and elapsed() >= start_at and is_wired():
            agent, started_at = start_agent(node, state), elapsed()
            beside_at = NEVER if beside else 0.0
        if agent and elapsed() >= beside_at:
            beside, beside_at = start_beside(node, state), NEVER
        bound_logs(f"{state}/log")
        # With an agent there is nothing else to do until a child ends; without one, look whether it can be started.
        wait_seconds = min(LOGS_SECONDS, max(POLL_SECONDS, (beside_at if agent else start_at) - elapsed()))
        woken_by = signal.sigtimedwait(SIGNALS, wait_seconds)
        if woken_by and woken_by.si_signo != signal.SIGCHLD:
            return stop_agent(agent)
        ended = reap()
        if beside in ended:
            report(f"a process beside the agent exited with {ended[beside]}; restarting in {BACKOFF_SECONDS:g} s")
            beside, beside_at = 0, elapsed() + BACKOFF_SECONDS
        if agent in ended:
            if elapsed() - started_at > SETTLED_SECONDS:
                delay = 0.0
            report(f"agent {agent} exited with {ended[agent]}; restarting in {delay:g} s")
            agent, start_at = 0, elapsed() + delay
            delay = min(max(delay * 2, BACKOFF_SECONDS), BACKOFF_LIMIT_SECONDS)


def make_private_mounts() -> None:
    """Mounts that show this node instead of the host; the host's own mounts and unmounts still arrive."""
    libc = ctypes.CDLL(None)
    mount("none", "/", "", MS_REC | MS_SLAVE)  # first: from here on nothing done here reaches the host
    os.makedirs("/run/netns", exist_ok=True)
    while libc.umount2(b"/run/netns", MNT_DETACH) == 0:
        pass  # the host's network namespaces must not be held by this node
    mount("proc", "/proc", "proc")
    mount("tmpfs", "/run/netns", "tmpfs", 0, "mode=755")
    os.mkdir("/run/netns/.cgroup")
    mount("/sys/fs/cgroup", "/run/netns/.cgroup", "", MS_BIND | MS_REC)
    mount("sysfs", "/sys", "sysfs")  # /sys/class/net of this namespace, with the host's cgroups put back
    mount("/run/netns/.cgroup", "/sys/fs/cgroup", "", MS_MOVE)
    os.rmdir("/run/netns/.cgroup")
    upstream = "/run/systemd/resolve/resolv.conf"
    if os.path.realpath("/etc/resolv.conf").endswith("/stub-resolv.conf") and os.path.exists(upstream):
        mount(upstream, os.path.realpath("/etc/resolv.conf"), "", MS_BIND)  # the stub listens on the host's loopback


def is_wired() -> bool:
    """Whether the host has connected this node: the default route is the last thing it sets."""
    with open("/proc/net/route") as routes:
        return any(line.split()[1] == "00000000" for line in routes)


def start_agent(node: str, state: str) -> int:
    """The new agent's number, or 0 while there is no command for it yet."""
    agent = start_command("argv", node, state, f"{state}/log/agent-{node}.log")
    if agent:
        report(f"agent started as {agent}")
    return agent


def start_beside(node: str, state: str) -> int:
    """The number of what the node runs beside its agent, or 0 if that is nothing."""
    return start_command("beside", node, state, f"{state}/log/beside-{node}.log")


def start_command(which: str, node: str, state: str, log: str) -> int:
    try:
        with open(f"{state}/nodes/{node}/agent.json") as file:
            command = json.load(file)
        if not command.get(which):
            return 0
        return os.posix_spawn(
            command[which][0],
            command[which],
            {**os.environ, **command["env"]},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
            setsigmask=[],
        )
    except FileNotFoundError:
        return 0


def bound_logs(folder: str) -> None:
    """Bound the logs: of each log of the cluster that has grown long, the end is kept. Its writers append, and go on there."""
    try:
        for name in os.listdir(folder):
            if name.endswith(".log") and os.stat(f"{folder}/{name}").st_size > LOG_LIMIT_BYTES:
                keep_end(f"{folder}/{name}")
    except OSError as error:  # the folder is being removed, or the disk full: no reason to end a node
        report(f"logs: {error}")


def keep_end(path: str) -> None:
    with open(path, "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # one node's init at a time
        size = file.seek(0, os.SEEK_END)
        if size > LOG_LIMIT_BYTES:
            file.seek(size - LOG_KEPT_BYTES)
            kept = file.read(LOG_KEPT_BYTES)
            file.truncate(0)
            file.seek(0)
            file.write(kept)


def stop_agent(agent: int) -> int:
    """End the agent in its own time, at most 10 s; the kernel ends everything else with this process."""
    until = elapsed() + STOP_SECONDS
    if agent:
        os.kill(agent, signal.SIGTERM)
    while agent and elapsed() < until and agent not in reap():
        signal.sigtimedwait([signal.SIGCHLD], until - elapsed())
    report("stopped")
    return 0


def reap() -> dict[int, str]:
    """How each child that has ended did: "status 1", "signal 9"."""
    ended: dict[int, str] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        code = os.waitstatus_to_exitcode(status)
        ended[pid] = f"signal {-code}" if code < 0 else f"status {code}"


def mount(source: str, target: str, kind: str, flags: int = 0, data: str = "") -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode()) != 0:
        raise OSError(ctypes.get_errno(), f"mount {kind or source} on {target}")


def elapsed() -> float:
    """Seconds on a clock that never jumps; from times(2), because this file imports little."""
    return os.times().elapsed


def report(sentence: str) -> None:
    print(sentence, flush=True)


def main(argv: list[str]) -> int:
    if argv[:2] != ["weft", "init"] or len(argv) != 5 or argv[3] != "--state":
        print("usage: init.py weft init NODE --state DIR", file=sys.stderr)
        return 2
    return launch(argv[2], argv[4])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
