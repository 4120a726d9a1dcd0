"""What an instance's sandbox is told, which limits it has, and which system calls: pure, for both versions of control groups."""

from __future__ import annotations

import errno
import struct
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from weft.contracts.driver.container import User
from weft.contracts.driver.function import HANDLER, Recipe, Roots, compose_command, compose_env
from weft.contracts.driver.sandbox import Ended, read_exit
from weft.drivers.function.plan import bound_scratch, plan_instance
from weft.drivers.function.process.sandbox import FIRST_USER, USERS, choose_user, plan_entry, plan_sandbox
from weft.drivers.linux.seccomp import Profile
from weft.drivers.linux.seccomp_bpf import compile_filter, tighten
from weft.drivers.runtime.oci.paths import ContainerPaths
from weft.drivers.runtime.oci.translate import INSTANCE, OciHostFacts, Users, translate_container

MIB = 1 << 20
RECIPE = Recipe(
    digest="d", function="u", project="p", name="thumb", handler="app.handler", memory=256 * MIB, scratch=512 * MIB,
    env={"KEY": "secret", "_HANDLER": "other", "PATH": "/mine"},
)  # fmt: skip
FACTS = OciHostFacts("x86_64", Profile("SCMP_ACT_ERRNO", [], []), swap_limits=True, open_files=20_000, cgroup_version=1)
PLAN = plan_instance("id", RECIPE, Roots(root=["/l"], code="/c", command=["run"]), User(1000, 1000))


def test_the_environment_is_lambdas_over_the_functions_own_over_the_images() -> None:
    env = compose_env(RECIPE, Roots(root=["/r"], code="/c", env={"LANG": "de", "KEY": "image"}))
    assert (env["KEY"], env["LANG"], env["PATH"], env["_HANDLER"]) == ("secret", "de", "/mine", "app.handler")
    assert (env["AWS_LAMBDA_RUNTIME_API"], env["AWS_LAMBDA_FUNCTION_MEMORY_SIZE"]) == ("127.0.0.1:9001", "256")
    assert compose_command(RECIPE, Roots(root=["/r"], command=["run", HANDLER])) == ["run", "app.handler"]


def test_no_secret_stands_on_a_command_line() -> None:
    words = plan_sandbox(PLAN, "/r", 7)
    assert "secret" in words and words[words.index("--size", words.index("--remount-ro")) + 1] == str(128 * MIB)
    assert words[words.index("/c") - 1] == "--ro-bind" and words[words.index("/c") + 1] == "/var/task"
    entry = plan_entry(["/g/cgroup.procs"], choose_user("p-1"), 9, ["python"])
    assert "secret" not in " ".join(entry) and entry[-3:] == ["9", "--", "python"] and "bwrap" in entry
    assert FIRST_USER <= choose_user("p-1") < FIRST_USER + USERS and choose_user("p-1") != choose_user("p-2")


def test_scratch_leaves_half_of_the_memory() -> None:
    assert bound_scratch(RECIPE) == 128 * MIB


@pytest.mark.parametrize(
    ("code", "out_of_memory", "ended"),
    [
        (0, True, Ended(code=0)),
        (3, False, Ended(code=3)),
        (139, False, Ended(signal=11)),
        (137, True, Ended(signal=9, out_of_memory=True)),
        (139, True, Ended(signal=11)),
        (-9, True, Ended(signal=9, out_of_memory=True)),
    ],
)
def test_how_it_ended(code: int, out_of_memory: bool, ended: Ended) -> None:
    assert read_exit(code, out_of_memory=out_of_memory) == ended


def test_a_container_has_no_rights_no_network_of_its_own_and_nothing_to_write() -> None:
    paths, traits = (
        ContainerPaths(run=Path("/r"), state=Path("/s")),
        msgspec.structs.replace(INSTANCE, seccomp={"a": "b"}),
    )
    config = translate_container(PLAN, paths, FACTS, cgroup="g/c-1/in", users=Users(70_000), devices=[], traits=traits)
    process, linux = config["process"], config["linux"]
    assert (
        set(map(tuple, process["capabilities"].values())) == {()}
        and process["noNewPrivileges"]
        and config["root"]["readonly"]
    )
    assert {one["type"] for one in linux["namespaces"]} == {"pid", "ipc", "uts", "mount", "cgroup", "user"}
    writable = {one["destination"] for one in config["mounts"] if "ro" not in one["options"]}
    assert writable == {"/proc", "/dev", "/dev/pts", "/dev/shm", "/tmp"}
    assert {one["destination"] for one in config["mounts"]} - writable == {"/var/task"}
    limits = {one["type"]: (one["soft"], one["hard"]) for one in process["rlimits"]}
    assert limits == {"RLIMIT_NOFILE": (1024, 1024), "RLIMIT_CORE": (0, 0)} and process["oomScoreAdj"] == 1000
    assert linux["resources"] == {"devices": [{"allow": False, "access": "rwm"}]} and linux["seccomp"] == {"a": "b"}


def test_the_filter_leaves_four_families_of_sockets() -> None:
    profile = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 38,
        "syscalls": [{"names": ["read", "socket", "ptrace", "no_such_call"], "action": "SCMP_ACT_ALLOW"}],
    }
    tight = tighten(profile)
    allowed = [rule for rule in tight["syscalls"] if rule["action"] == "SCMP_ACT_ALLOW"]
    assert [rule["args"][0]["value"] for rule in allowed if rule["names"] == ["socket"]] == [1, 2, 10, 16]
    assert profile["syscalls"][0]["names"][1] == "socket"  # what was given stays
    program = compile_filter(tight)
    assert len(program) % 8 == 0 and len(program) > 80
    last = {struct.unpack("<HBBI", program[place : place + 8])[3] for place in range(0, len(program), 8)}
    assert {0x7FFF_0000, 0x0005_0000 | 38, 0x0005_0000 | 1} <= last


OF_OTHERS = ["ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd", "kcmp"]
# Under the program given on its input: what each system call comes to, called with arguments that mean nothing.
CALLER = """
import ctypes, os, sys
libc, library = ctypes.CDLL(None, use_errno=True), ctypes.CDLL("libseccomp.so.2")
numbers = {name: library.seccomp_syscall_resolve_name(name.encode()) for name in sys.argv[1:]}
class Program(ctypes.Structure):
    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_char_p))
filter = sys.stdin.buffer.read()
if filter:
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, ctypes.byref(Program(len(filter) // 8, filter)), 0, 0) == 0
for name, number in numbers.items():
    print(name, ctypes.get_errno() if libc.syscall(ctypes.c_long(number), *[ctypes.c_long(-1)] * 5) == -1 else 0)
"""


def test_no_call_gets_a_hand_into_another_process() -> None:
    everything = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": [*OF_OTHERS, "read"], "action": "SCMP_ACT_ALLOW"}],
    }

    def call(program: bytes) -> dict[str, int]:
        asked = [sys.executable, "-S", "-E", "-c", CALLER, *OF_OTHERS, "close"]
        told = subprocess.run(asked, input=program, capture_output=True, check=True).stdout.decode()
        return {name: int(error) for name, error in (line.split() for line in told.splitlines())}

    assert errno.EPERM not in call(b"").values()
    refused = {name for name, error in call(compile_filter(tighten(everything))).items() if error == errno.EPERM}
    assert refused == set(OF_OTHERS)
