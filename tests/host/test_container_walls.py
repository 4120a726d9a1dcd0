"""What a container can't reach, found out by trying from inside: the node's files, processes, sockets, devices and rights."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from container_lab import CAPABILITIES, ContainerLab
from containerd_lab import ContainerdLab

from weft.contracts.driver.container import ContainerMount, ContainerPlan, ContainerProcess
from weft.contracts.driver.runtime import ExecRequest
from weft.drivers.network.bridge.kernel import ensure_namespace
from weft.drivers.runtime.oci.driver import OciDriver
from weft.objects.errors import DriverFailed

RUNTIMES = ["crun", "runc", "containerd"]
WAIT_SECONDS = 60.0

pytestmark = pytest.mark.host

# Tried by one program, which says of each what the kernel said: a test of its own for each would take a container each.
PROGRAM = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

static void tell(const char *what, long result) {
    printf("%s %s\n", what, result >= 0 ? "done" : strerrorname_np(errno));
    fflush(stdout);
}

int main(int argc, char **argv) {
    struct sockaddr_un door = {.sun_family = AF_UNIX};
    int talker = socket(AF_UNIX, SOCK_STREAM, 0);
    memcpy(door.sun_path + 1, argv[1], strlen(argv[1]));
    tell("abstract-socket", connect(talker, (void *)&door, sizeof(sa_family_t) + 1 + strlen(argv[1])));
    tell("raw-socket", socket(AF_INET, SOCK_RAW, 1));
    tell("packet-socket", socket(AF_PACKET, SOCK_RAW, 0));
    tell("mount", mount("none", "/tmp", "tmpfs", 0, ""));
    tell("unmask", umount2("/proc/kcore", MNT_DETACH));
    tell("remount-sys", mount("none", "/sys", 0, MS_REMOUNT | MS_BIND, ""));
    tell("write-sysctl", open("/proc/sys/kernel/core_pattern", O_WRONLY));
    tell("sysrq", open("/proc/sysrq-trigger", O_WRONLY));
    tell("kcore", open("/proc/kcore", O_RDONLY) < 0 ? -1 : 0);
    mknod("/tmp/disk", S_IFBLK | 0600, makedev(254, 0));
    tell("disk", open("/tmp/disk", O_RDONLY));
    mknod("/tmp/memory", S_IFCHR | 0600, makedev(1, 1));
    tell("memory", open("/tmp/memory", O_RDONLY));
    tell("new-user-namespace", unshare(CLONE_NEWUSER));
    tell("new-mounts", unshare(CLONE_NEWNS));
    tell("keyring", syscall(SYS_add_key, "user", "x", "y", 1, -2));
    tell("kexec", syscall(SYS_kexec_load, 0, 0, 0, 0));
    tell("bpf", syscall(SYS_bpf, 0, 0, 0));
    tell("userfault", syscall(SYS_userfaultfd, 0));
    tell("module", syscall(SYS_init_module, 0, 0, ""));
    tell("reboot", syscall(SYS_reboot, 0xfee1dead, 672274793, 0, 0));
    tell("hostname", sethostname("other", 5));
    tell("time", syscall(SYS_settimeofday, 0, 0));
    tell("cgroup", open("/sys/fs/cgroup/memory/memory.limit_in_bytes", O_WRONLY));
    tell("quit-cgroup", mkdir("/sys/fs/cgroup/memory/mine", 0755));
    tell("vsock", socket(AF_VSOCK, SOCK_STREAM, 0));
    tell("crypto-socket", socket(AF_ALG, SOCK_SEQPACKET, 0));
    tell("session-keyring", syscall(SYS_keyctl, 0, -3, 0));
    tell("join-keyring", syscall(SYS_keyctl, 1, "theirs"));
    tell("request-key", syscall(SYS_request_key, "user", "x", 0, -3));
    tell("trace-outside", ptrace(PTRACE_ATTACH, atoi(argv[2]), 0, 0));
    struct iovec piece = {malloc(8), 8}, there = {(void *)0x400000, 8};
    tell("read-memory-outside", syscall(SYS_process_vm_readv, atoi(argv[2]), &piece, 1, &there, 1, 0));
    tell("signal-outside", kill(atoi(argv[2]), 0));
    tell("see-outside", access(argv[3], F_OK));
    tell("compare-outside", syscall(SYS_kcmp, getpid(), atoi(argv[2]), KCMP_FILE, 0, 0));
    struct { unsigned size; int kind; unsigned char id[8]; } handle = {8, 1, {2}};
    tell("file-by-handle", syscall(SYS_open_by_handle_at, AT_FDCWD, &handle, O_RDONLY));
    tell("perf", syscall(SYS_perf_event_open, 0, 0, -1, -1, 0));
    tell("io-uring", syscall(SYS_io_uring_setup, 1, 0));
    tell("kernel-log", syscall(SYS_syslog, 3, 0, 0));
    tell("kernel-messages", open("/dev/kmsg", O_WRONLY));
    tell("port-io", syscall(SYS_iopl, 3));
    tell("swap", syscall(SYS_swapon, "/tmp/disk", 0));
    tell("accounting", syscall(SYS_acct, "/tmp/acct"));
    tell("watch-files", syscall(SYS_fanotify_init, 0, 0));
    tell("join-namespace", syscall(SYS_setns, open("/proc/1/ns/net", O_RDONLY), 0));
    tell("module-loader", open("/proc/sys/kernel/modprobe", O_WRONLY));
    tell("overcommit", open("/proc/sys/vm/overcommit_memory", O_WRONLY));
    tell("forwarding", open("/proc/sys/net/ipv4/ip_forward", O_WRONLY));
    tell("hot-plug-helper", open("/sys/kernel/uevent_helper", O_WRONLY));
    tell("release-agent", open("/sys/fs/cgroup/memory/release_agent", O_WRONLY));
    tell("debugging", open("/sys/kernel/debug", O_RDONLY | O_DIRECTORY) < 0 ? -1 : access("/sys/kernel/debug/tracing", F_OK));
    tell("firmware", open("/sys/firmware/dmi/tables/DMI", O_RDONLY));
    tell("disk-of-node", open("/sys/block/vda/uevent", O_WRONLY));
    tell("write-root", open("/bin/planted", O_WRONLY | O_CREAT, 0644));
    return 0;
}
"""
REFUSED = {
    "EPERM",
    "EACCES",
    "ENOSYS",
    "EROFS",
    "EINVAL",
    "ENOENT",
    "ECONNREFUSED",
    "EAFNOSUPPORT",
    "ESRCH",
    "EBADF",
    "ENODEV",
}
HARMLESS = {"kcore"}  # /dev/null lies over it


@pytest.fixture(scope="module", params=RUNTIMES)
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ContainerLab]:
    if os.geteuid() != 0 or not all(map(shutil.which, (request.param, "conmon", "gcc"))):
        pytest.skip(f"needs root, {request.param}, conmon and gcc")
    source = tmp_path_factory.mktemp("try") / "try.c"
    source.write_text(PROGRAM)
    lab = ContainerdLab() if request.param == "containerd" else ContainerLab(request.param)
    program = Path(lab.layers[1], "bin", "try")
    subprocess.run(["gcc", "-static", "-O1", "-o", str(program), str(source)], check=True)
    try:
        yield lab
    finally:
        lab.close()


async def run(lab: ContainerLab, plan: ContainerPlan) -> str:
    """What it prints until it ends; nothing is left of it."""
    driver = lab.driver()
    await driver.start(plan)
    out = b""
    async with asyncio.timeout(WAIT_SECONDS):
        async for line in driver.read_log(plan.id, follow=True):
            out += line.data
    await driver.remove(plan.id)
    await lab.close_drivers()
    assert lab.leftovers() == []
    return out.decode()


async def output_of(driver: OciDriver, plan: ContainerPlan, *argv: str) -> tuple[bytes, int | None]:
    session = await driver.exec(plan.id, ExecRequest(list(argv)))
    out = b""
    async for chunk in session.output():
        out += chunk.data
    await session.close()
    return out, chunk.code


async def try_all(lab: ContainerLab, plan: ContainerPlan) -> dict[str, str]:
    name = f"weft-{lab.folder.name}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
        door.bind(f"\0{name}")
        door.listen()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as neighbour:
            neighbour.connect(f"\0{name}")  # it is there for whoever is in this network namespace
        outside = str(os.getpid())
        process = ContainerProcess(["try", name, outside, f"/proc/{outside}"])
        said = await run(lab, msgspec.structs.replace(plan, process=process))
    words = dict(line.split() for line in said.splitlines())
    assert len(words) == PROGRAM.count("tell(") - 1, said
    return words


@pytest.mark.parametrize("shifted", [True, False], ids=["own-users", "node-users"])
async def test_nothing_of_the_node_can_be_had_from_inside(lab: ContainerLab, shifted: bool) -> None:
    words = await try_all(lab, lab.plan(f"walls-{shifted}", user_namespace=shifted, read_only_root=True))
    had = {what for what, said in words.items() if said == "done"}
    assert had <= HARMLESS, words
    assert set(words.values()) - {"done"} <= REFUSED, words


async def test_without_the_walls_the_program_would_get_further(lab: ContainerLab) -> None:
    """So that the test above can fail: given every right but the node's own users, some of it works."""
    rights = ["CAP_SYS_ADMIN", "CAP_NET_RAW", "CAP_MKNOD"]
    words = await try_all(lab, lab.plan("open", capabilities=rights, user_namespace=False))
    assert {"mount", "raw-socket", "new-mounts", "write-root"} <= {
        what for what, said in words.items() if said == "done"
    }, words


async def test_files_and_processes_are_its_own(lab: ContainerLab) -> None:
    secret = lab.folder / "secret"
    secret.write_text("the node's")
    secret.chmod(0o600)
    text = (
        "ls /proc | grep -c '^[0-9]'; readlink /proc/1/root; "
        f"cat /proc/1/root{secret} /proc/self/root{secret} ../../../..{secret} 2>/dev/null; "
        "ls /proc/1/root; cat /proc/self/uid_map; cat /proc/net/dev | wc -l; cat /proc/self/cgroup"
    )
    out = await run(lab, lab.script("inside", text))
    assert "the node's" not in out and str(lab.folder) not in out
    assert lab.host.cgroup not in out
    first = out.splitlines()[0]
    assert int(first) <= 5, "it sees processes of others"
    [mapping] = [line.split() for line in out.splitlines() if line.split()[-1:] == ["65536"]]
    assert mapping[0] == "0" and int(mapping[1]) > 0x7000_0000


async def test_its_root_is_nobody_outside(lab: ContainerLab) -> None:
    """What its root makes belongs to a user that owns nothing; what is the node's root's can't be written."""
    driver = lab.driver()
    plan = lab.plan("nobody")
    facts = await driver.start(plan)
    async with asyncio.timeout(WAIT_SECONDS):  # its start is told of a moment before it becomes its command
        while "\nSeccomp:\t0" in (status := Path(f"/proc/{facts.pid}/status").read_text()):
            await asyncio.sleep(0.01)
    ids = next(line for line in status.splitlines() if line.startswith("Uid:")).split()[1:]
    assert all(int(uid) > 0x7000_0000 for uid in ids)
    held = {
        line.split()[0]: line.split()[1] for line in status.splitlines() if line.startswith(("Cap", "Seccomp", "NoNew"))
    }
    assert held["NoNewPrivs:"] == "1" and held["Seccomp:"] == "2"
    assert (
        int(held["CapBnd:"], 16) & (1 << 21 | 1 << 13 | 1 << 16 | 1 << 12) == 0
    )  # sys_admin, net_raw, sys_module, net_admin
    await driver.stop(plan.id, grace_seconds=0)
    await driver.remove(plan.id)
    await lab.close_drivers()


async def test_a_link_in_the_image_leads_no_mount_out_of_it(lab: ContainerLab) -> None:
    outside, volume = lab.folder / "outside", lab.folder / "volume"
    layer = lab.folder / "layers" / "links"
    for folder in (outside, volume, layer):
        folder.mkdir(exist_ok=True)
    (volume / "mark").write_text("mark\n")
    if not (layer / "way").is_symlink():
        (layer / "way").symlink_to("../../../../../.." + str(outside))
    mounts = [ContainerMount(str(volume), "/way/deep")]
    plan = lab.script("links", "cat /way/deep/mark", layers=[str(layer), *lab.layers], mounts=mounts)
    try:
        assert await run(lab, plan) == "mark\n"
    except DriverFailed:
        assert lab.runtime == "crun"  # it makes no folder where a link leads nowhere
        await lab.close_drivers()
    assert list(outside.iterdir()) == [] and lab.leftovers() == []


async def test_a_read_only_root_can_only_be_read(lab: ContainerLab) -> None:
    text = "touch /x /etc/x /bin/x 2>/dev/null; touch /tmp/x /run/x && echo room; ls /x /etc/x /bin/x 2>/dev/null; echo end"
    assert await run(lab, lab.script("fixed", text, read_only_root=True)) == "room\nend\n"


async def test_rights_over_its_network_are_those_it_was_given_and_none_over_the_nodes(lab: ContainerLab) -> None:
    name = f"wt{lab.folder.name[-6:]}"
    await ensure_namespace(name, own_users=True)
    lines = [
        f"netns add {name}p",
        f"link add eth0 netns {name} type veth peer name eth0 netns {name}p",
        *(f"-n {end} link set {link} up" for end in (name, f"{name}p") for link in ("lo", "eth0")),
        f"-n {name} addr add 10.9.9.1/24 dev eth0",
        f"-n {name}p addr add 10.9.9.2/24 dev eth0",
    ]
    tries = {
        "raw": "traceroute -n -I -m 1 -q 1 -w 2 10.9.9.2",
        "ping": "ping -c 1 -W 5 10.9.9.2",
        "address": "ip addr add 10.9.9.7/24 dev eth0; ip addr del 10.9.9.7/24 dev eth0",
        "node": "echo 7 > /proc/sys/net/core/somaxconn; echo 0 > /proc/sys/kernel/randomize_va_space",
    }
    text = "; ".join(f"({line}) >/dev/null 2>&1 && echo {what}" for what, line in tries.items()) + "; true"
    told, driver = {}, lab.driver()
    try:
        for line in lines:
            subprocess.run(["ip", *line.split()], check=True)
        for more in ((), ("CAP_NET_RAW",), ("CAP_NET_ADMIN",)):
            plan = lab.plan("rights", netns=f"/run/netns/{name}", capabilities=[*CAPABILITIES, *more])
            for _ in range(2):  # the second time its network knows its users already
                await driver.start(plan)
                out, _ = await output_of(driver, plan, "sh", "-c", text)
                assert told.setdefault(more, out.split()) == out.split()
                await driver.stop(plan.id, grace_seconds=0)
            await driver.remove(plan.id)
        assert told == {(): [], ("CAP_NET_RAW",): [b"raw", b"ping"], ("CAP_NET_ADMIN",): [b"address"]}
    finally:
        await lab.close_drivers()
        for each in (name, f"{name}p"):
            subprocess.run(["ip", "netns", "delete", each], check=True)


async def test_its_network_is_the_one_that_was_given(lab: ContainerLab) -> None:
    name = f"wt{lab.folder.name[-6:]}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        subprocess.run(
            ["ip", "-n", name, "link", "add", "inside0", "type", "veth", "peer", "name", "inside1"], check=True
        )
        text = "ls /sys/class/net; (echo | nc -l -p 80 & sleep 0.3; netstat -ltn | grep -c ':80 ')"
        out = await run(lab, lab.script("given", text, netns=f"/run/netns/{name}"))
        assert out.split() == ["inside0", "inside1", "lo", "1"]
        assert (await run(lab, lab.script("none", "ls /sys/class/net"))).split() == ["lo"]
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)
