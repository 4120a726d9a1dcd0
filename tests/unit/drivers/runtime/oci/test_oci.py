"""What a container's plan becomes, and what is made of its end: the pure parts of the OCI driver."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from weft.contracts.clock import SystemClock
from weft.contracts.driver.container import ContainerMount, ContainerPlan, ContainerProcess, LogLine, LogPiece, User
from weft.contracts.driver.host import Capacity, Host
from weft.contracts.driver.runtime import ExecRequest
from weft.drivers.container.end import ContainerEnd, read_signal
from weft.drivers.container.name_files import plan_name_files
from weft.drivers.linux.mounts import parse_mounts
from weft.drivers.linux.processes import ProcessId
from weft.drivers.linux.seccomp import Profile, SyscallRule, translate_seccomp
from weft.drivers.runtime.oci.conmon import logs
from weft.drivers.runtime.oci.conmon.logs import TURN_BYTES, parse_line, read_after, read_lines, turn_over, turned
from weft.drivers.runtime.oci.conmon.shim import plan_shim, run_shim, shorten_complaints
from weft.drivers.runtime.oci.container import Container
from weft.drivers.runtime.oci.driver import OciDriver
from weft.drivers.runtime.oci.mount_namespace import find_hidden
from weft.drivers.runtime.oci.paths import ContainerPaths
from weft.drivers.runtime.oci.probe import make_program
from weft.drivers.runtime.oci.record import (
    ContainerRecord,
    decide_end,
    note_begun,
    read_record,
    write_record,
)
from weft.drivers.runtime.oci.resize import list_frozen
from weft.drivers.runtime.oci.runtime import Runtime, read_error, read_never_began, shorten_refusal
from weft.drivers.runtime.oci.translate import Device, OciHostFacts, Users, translate_container, translate_exec
from weft.drivers.runtime.oci.user_namespace import FIRST_USER, RANGES, USERS_EACH, choose_first_user, find_ranges
from weft.objects.errors import DriverFailed, InvalidInput

PATHS = ContainerPaths(run=Path("/run/n1/containers/c1"), state=Path("/var/n1/containers/c1"))
PROFILE = msgspec.convert(
    {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 38,
        "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
        "syscalls": [
            {"names": ["read"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["chroot"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_CHROOT"]}},
            {"names": ["chroot"], "action": "SCMP_ACT_ERRNO", "excludes": {"caps": ["CAP_SYS_CHROOT"]}, "errnoRet": 1},
            {"names": ["arm_only"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["arm64"]}},
        ],
    },
    Profile,
)
FACTS = OciHostFacts(
    "x86_64", PROFILE, swap_limits=True, open_files=20_000, cgroup_version=1, users=(FIRST_USER, RANGES)
)
PLAN = ContainerPlan(
    id="c1",
    uid="u1",
    name="web",
    incarnation=1,
    layers=["/l1"],
    process=ContainerProcess(["serve"], env=["A=1"]),
    cpu=0.5,
    memory_bytes=64 << 20,
    capabilities=["CAP_CHOWN"],
)
USERS = Users(500_000, "/proc/7/fd/9")
RECORD = ContainerRecord(PLAN, "crun", "this-boot", 0.0, process=ProcessId(17, 4), started=True)


async def test_a_record_that_a_stop_and_the_end_write_at_once_is_written_by_both(tmp_path: Path) -> None:
    paths, nothing = ContainerPaths(tmp_path / "run", tmp_path / "state"), Any
    record = msgspec.structs.replace(RECORD)
    container = Container(
        paths,
        record,
        nothing,
        nothing,
        nothing,
        Capacity(1, 1, 1),
        SystemClock(),
        lambda: None,  # type: ignore[arg-type]
    )
    await asyncio.gather(*(container.save() for _ in range(50)))
    assert read_record(paths) == record
    assert [path.name for path in paths.record.parent.iterdir()] == [paths.record.name]


def translate(
    plan: ContainerPlan, users: Users | None = USERS, facts: OciHostFacts = FACTS, **more: Any
) -> dict[str, Any]:
    devices = more.pop("devices", [])
    return translate_container(plan, PATHS, facts, cgroup="weft/n1/c1", users=users, devices=devices)


def change(**fields: Any) -> ContainerPlan:
    return msgspec.structs.replace(PLAN, **fields)


def mounts(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {mount["destination"]: mount for mount in config["mounts"]}


def test_limits_are_those_of_the_plan_and_leave_no_swap() -> None:
    resources = translate(PLAN)["linux"]["resources"]
    assert resources["memory"] == {"limit": 64 << 20, "swap": 64 << 20}
    assert resources["cpu"] == {"shares": 512, "quota": 50_000, "period": 100_000}
    assert resources["pids"]["limit"] == 4096


def test_where_swap_cant_be_limited_it_isnt_asked_for() -> None:
    facts = msgspec.structs.replace(FACTS, swap_limits=False)
    assert "swap" not in translate(PLAN, facts=facts)["linux"]["resources"]["memory"]


def test_no_cores_asked_for_is_no_limit() -> None:
    assert translate(change(cpu=0))["linux"]["resources"]["cpu"] == {"shares": 1024}


def test_the_control_group_is_named_from_the_top() -> None:
    assert translate(PLAN)["linux"]["cgroupsPath"] == "/weft/n1/c1"


def test_every_namespace_is_its_own_and_the_network_is_the_given_one() -> None:
    kinds = {
        entry["type"]: entry.get("path") for entry in translate(change(netns="/run/netns/x"))["linux"]["namespaces"]
    }
    assert set(kinds) == {"pid", "ipc", "uts", "mount", "cgroup", "network", "user"}
    assert (kinds["network"], kinds["user"]) == ("/run/netns/x", "/proc/7/fd/9")
    alone = {entry["type"]: entry.get("path") for entry in translate(PLAN)["linux"]["namespaces"]}
    assert alone["network"] is None


def test_its_root_is_a_user_of_its_own_unless_the_plan_says_otherwise() -> None:
    assert translate(PLAN)["linux"]["uidMappings"] == [{"containerID": 0, "hostID": 500_000, "size": USERS_EACH}]
    plain = translate(change(user_namespace=False), users=None)["linux"]
    assert "uidMappings" not in plain and "user" not in {entry["type"] for entry in plain["namespaces"]}


def test_rights_are_the_plans_and_grow_no_further() -> None:
    process = translate(PLAN)["process"]
    assert process["capabilities"]["bounding"] == process["capabilities"]["effective"] == ["CAP_CHOWN"]
    assert process["capabilities"]["ambient"] == process["capabilities"]["inheritable"] == []
    assert process["noNewPrivileges"] is True


def test_another_user_than_root_holds_no_rights() -> None:
    plan = change(process=ContainerProcess(["serve"], user=User(1000, 1000, [44])))
    process = translate(plan)["process"]
    assert process["capabilities"]["effective"] == [] and process["user"]["additionalGids"] == [44]


def test_limits_on_files_never_pass_the_nodes_own() -> None:
    assert translate(PLAN)["process"]["rlimits"] == [{"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 20_000}]
    scarce = msgspec.structs.replace(FACTS, open_files=512)
    assert translate(PLAN, facts=scarce)["process"]["rlimits"][0]["soft"] == 512


def test_an_environment_without_a_path_gets_one_and_keeps_what_it_says() -> None:
    env = translate(PLAN)["process"]["env"]
    assert env[0].startswith("PATH=") and "A=1" in env and "HOME=/" in env
    own = change(process=ContainerProcess(["serve"], env=["PATH=/x", "HOME=/y", "EMPTY"]))
    assert translate(own)["process"]["env"] == ["PATH=/x", "HOME=/y", "EMPTY="]


def test_a_read_only_root_keeps_room_for_what_programs_write() -> None:
    config = translate(change(read_only_root=True))
    assert config["root"]["readonly"] is True
    assert {"/tmp", "/run"} <= set(mounts(config))
    assert "/tmp" not in mounts(translate(PLAN))


def test_volumes_are_shown_with_shifted_owners_where_users_are_its_own() -> None:
    plan = change(
        mounts=[ContainerMount("/pool/v", "/data", read_only=True), ContainerMount("", "/fast", size_bytes=9)]
    )
    shifted = mounts(translate(plan))
    assert shifted["/data"]["source"] == str(PATHS.mounts / "v0") and "ro" in shifted["/data"]["options"]
    assert shifted["/fast"]["type"] == "tmpfs" and "size=9" in shifted["/fast"]["options"]
    assert mounts(translate(plan, users=None))["/data"]["source"] == "/pool/v"


def test_a_volume_takes_the_place_of_a_file_of_the_nodes() -> None:
    plan = change(mounts=[ContainerMount("/x/hosts", "/etc/hosts")], read_only_root=True)
    targets = [mount["destination"] for mount in translate(plan)["mounts"]]
    assert targets.count("/etc/hosts") == 1


def test_devices_are_only_those_that_were_named() -> None:
    config = translate(change(devices=["/dev/fuse"]), devices=[Device("/dev/fuse", "c", 10, 229)])["linux"]
    assert config["resources"]["devices"][0] == {"allow": False, "access": "rwm"}
    assert config["resources"]["devices"][1]["major"] == 10 and config["devices"][0]["path"] == "/dev/fuse"


def test_the_profile_follows_capabilities_and_machine() -> None:
    def names(capabilities: list[str]) -> dict[str, str]:
        rules = translate_seccomp(PROFILE, "x86_64", capabilities)["syscalls"]
        return {rule["names"][0]: rule["action"] for rule in rules}

    assert names([])["read"] == "SCMP_ACT_ALLOW" and names([])["chroot"] == "SCMP_ACT_ERRNO"
    assert "arm_only" not in names([])
    assert names(["CAP_SYS_CHROOT"])["chroot"] == "SCMP_ACT_ALLOW"
    with pytest.raises(DriverFailed):
        translate_seccomp(PROFILE, "vax", [])


def test_sockets_are_those_of_networks_and_files_for_who_has_no_right_to_more() -> None:
    not_audit = {"index": 2, "value": 9, "valueTwo": 0, "op": "SCMP_CMP_NE"}
    anywhere = SyscallRule(["socket", "bind"], "SCMP_ACT_ALLOW")
    for rule, args in ((SyscallRule(["socket"], "SCMP_ACT_ALLOW", args=[not_audit]), [not_audit]), (anywhere, [])):
        profile = msgspec.structs.replace(PROFILE, syscalls=[rule])
        rules = translate_seccomp(profile, "x86_64", [])["syscalls"]
        sockets = [rule for rule in rules if "socket" in rule["names"]]
        limits = [[(arg["op"][9:], arg["value"]) for arg in rule["args"] if arg["index"] == 0] for rule in sockets]
        assert limits == [[("LT", 16)], [("EQ", 16)], [("EQ", 17)], [("GT", 17)]]
        assert sockets[1]["args"][1:] == args and sockets[3]["action"] == "SCMP_ACT_ERRNO"
    assert any(rule["names"] == ["bind"] for rule in rules)
    assert translate_seccomp(profile, "x86_64", ["CAP_SYS_ADMIN"])["syscalls"][0]["names"] == anywhere.names


def test_namespaces_mounts_and_keys_are_kept_back_from_who_has_no_right_to_them() -> None:
    rule = SyscallRule(["clone", "clone3", "unshare", "mount", "fork"], "SCMP_ACT_ALLOW")
    profile = msgspec.structs.replace(PROFILE, syscalls=[rule])
    rules = translate_seccomp(profile, "x86_64", ["CAP_CHOWN"])["syscalls"]
    allowed = {name: rule.get("args") for rule in rules if rule["action"] == "SCMP_ACT_ALLOW" for name in rule["names"]}
    assert set(allowed) == {"fork", "clone"} and allowed["clone"][0]["op"] == "SCMP_CMP_MASKED_EQ"
    assert {"unshare", "mount", "setns", "keyctl"} <= set(rules[-1]["names"])
    whole = translate_seccomp(profile, "x86_64", ["CAP_SYS_ADMIN"])["syscalls"]
    assert whole == [{"names": rule.names, "action": "SCMP_ACT_ALLOW"}]


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (b"\x1b[1;31m2026-11-28T19:45:56.33Z: chdir `/x`: No such file\x1b[0m\r\n", b"chdir `/x`: No such file\r\n"),
        (
            b'time="2026-11-28T19:45:58Z" level=error msg="exec failed: unable to start container process: exec: \\"x\\": no"\n',
            b'exec: "x": no\n',
        ),
        (b"\x1b[31mERRO\x1b[0m[0000] exec failed: unable to start container process: no \r\n", b"no\r\n"),
        (b"the container `85fe3f94f6` is not running\n", b"the container has ended\n"),
        (b"error opening file `/run/x/85fe/status`: No such file or directory\n", b"the container has ended\n"),
        (
            b'time="2026-11-28T19:45:58Z" level=error msg="exec failed: container does not exist"\n',
            b"the container has ended\n",
        ),
        (b"a program's own \x1b[1;31mred\x1b[0m\n", b"a program's own \x1b[1;31mred\x1b[0m\n"),
        (b'time="' * 20_000, b'time="' * 20_000),
        (b"\x1b[31mERRO\x1b[0m[1] exec failed:" + b" " * 50_000, b""),
    ],
)
def test_of_a_refused_command_the_runtimes_words_are_left(output: bytes, words: bytes) -> None:
    assert shorten_refusal(output) == words


def test_a_command_runs_as_the_container_does_with_its_own_words() -> None:
    process = translate_exec(PLAN, FACTS, ExecRequest(["sh"], env={"A": "2", "B": "3"}, cwd="/x", tty=True))
    assert process["args"] == ["sh"] and process["cwd"] == "/x" and process["terminal"] is True
    assert {"A=2", "B=3", "TERM=xterm"} <= set(process["env"]) and "A=1" not in process["env"]
    assert process["capabilities"]["bounding"] == ["CAP_CHOWN"] and process["noNewPrivileges"] is True
    assert "consoleSize" not in process
    sized = translate_exec(PLAN, FACTS, ExecRequest(["sh"], tty=True, rows=33, columns=101))
    assert sized["consoleSize"] == {"height": 33, "width": 101}
    assert "consoleSize" not in translate_exec(PLAN, FACTS, ExecRequest(["sh"], rows=33, columns=101)), "no terminal"
    with pytest.raises(InvalidInput):
        translate_exec(PLAN, FACTS, ExecRequest([]))


def test_names_and_servers_stand_in_their_files() -> None:
    files = plan_name_files(change(hostname="box", name_servers=["10.0.0.1"], search=["a.weft", "weft"]))
    assert files["hostname"] == "box\n" and "127.0.1.1 box" in files["hosts"]
    assert files["resolv.conf"] == "nameserver 10.0.0.1\nsearch a.weft weft\n"


@pytest.mark.parametrize(
    ("exit_code", "out_of_memory", "state", "reason"),
    [
        (0, False, "stopped", "completed"),
        (3, False, "failed", "exited"),
        (3, True, "failed", "exited"),
        (137, True, "failed", "outOfMemory"),
        (137, False, "failed", "killed"),
        (143, False, "failed", "killed"),
        (255, False, "failed", "exited"),
        (None, False, "failed", "shimLost"),
    ],
)
def test_an_end_is_told_by_what_is_known_of_it(
    exit_code: int | None, out_of_memory: bool, state: str, reason: str
) -> None:
    end = decide_end(RECORD, exit_code=exit_code, out_of_memory=out_of_memory, host_boot_id="this-boot")
    assert (end.state, end.reason, end.exit_code) == (state, reason, exit_code)


def test_an_end_that_was_asked_for_is_one_whatever_the_code() -> None:
    asked = msgspec.structs.replace(RECORD, stopping=True)
    end = decide_end(asked, exit_code=143, out_of_memory=False, host_boot_id="this-boot")
    assert (end.state, end.reason, end.exit_code) == ("stopped", "stopRequested", 143)


def test_what_a_reboot_ended_and_what_never_ran_are_told_so() -> None:
    assert decide_end(RECORD, exit_code=None, out_of_memory=False, host_boot_id="next").reason == "nodeRestarted"
    assert decide_end(RECORD, exit_code=0, out_of_memory=False, host_boot_id="next").reason == "completed"
    unsaid = msgspec.structs.replace(RECORD, process=None, started=False)
    assert decide_end(unsaid, exit_code=None, out_of_memory=False, host_boot_id="next").reason == "nodeRestarted"
    begun = msgspec.structs.replace(RECORD, process=None, started=False)
    assert decide_end(begun, exit_code=None, out_of_memory=False, host_boot_id="this-boot").reason == "startInterrupted"


@pytest.mark.parametrize(
    ("name", "number"),
    [("SIGTERM", 15), ("quit", 3), ("9", 9), ("SIGRTMIN+3", 37), ("SIGWHAT", 15), ("", 15), ("4096", 15)],
)
def test_a_stop_signal_is_read_in_all_its_forms(name: str, number: int) -> None:
    assert read_signal(name) == number


def test_each_container_has_users_of_its_own_and_keeps_them() -> None:
    ranges = find_ranges("0 0 4294967295\n")
    taken: set[int] = set()
    for number in range(500):
        user = choose_first_user(f"c{number}", ranges, taken)
        assert user not in taken and (user - FIRST_USER) % USERS_EACH == 0
        taken.add(user)
    assert choose_first_user("c7", ranges, ()) == choose_first_user("c7", ranges, ())
    before = choose_first_user("c8", ranges, ())
    assert choose_first_user("c7", ranges, (), before) == before
    assert choose_first_user("c7", ranges, {before}, before) != before
    assert choose_first_user("c7", (FIRST_USER - USERS_EACH, 1), (), before) == FIRST_USER - USERS_EACH


def test_too_few_users_are_none_and_a_full_node_says_so() -> None:
    assert find_ranges("0 1000 65536\n") == (0, 0)
    with pytest.raises(DriverFailed):
        choose_first_user("c", (65536, 1), {65536})


def test_the_second_version_is_hidden_only_beside_the_first() -> None:
    one = "30 25 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    two = "31 25 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"

    def find(mountinfo: str) -> list[str]:
        return find_hidden(parse_mounts(mountinfo))

    assert find(one + two) == ["/sys/fs/cgroup/unified"]
    assert find(one + two + two) == ["/sys/fs/cgroup/unified"]  # seen where a node has a /sys of its own
    assert find(two) == [] and find(one) == []


def test_the_runtimes_error_is_its_last_word() -> None:
    runc = 'time="2026-11-21T00:25:37Z" level=error msg="runc create failed: exec: \\"sh\\": not found"'
    assert read_error(runc) == 'runc create failed: exec: "sh": not found'
    assert read_error("one\ntwo\n") == "two" and read_error("")


@pytest.mark.parametrize(
    ("said", "means"),
    [
        ("executable file `hi` not found in $PATH: No such file or directory", "commandNotFound"),
        ("container web: open executable: Not a directory", "commandNotFound"),
        ('runc create failed: unable to start it: exec: "hi": executable file not found in $PATH', "commandNotFound"),
        ('unable to start container process: exec: "/x": stat /x: no such file or directory', "commandNotFound"),
        ('failed to create shim task: OCI runtime create failed: exec: "/x": permission denied', "commandNotExecutable"),
        ("open executable: Operation not permitted", "commandNotExecutable"),
        ("crun: mount `overlay` to `/x`: No such file or directory", None),
        ("unable to start container process: error mounting \"/x\": permission denied", None),
        ("the container was not created within 60 s", None),
    ],
)  # fmt: skip
def test_only_what_says_that_the_command_cant_be_begun_is_taken_for_that(said: str, means: str | None) -> None:
    assert read_never_began(said) == means


def test_a_program_for_the_probe_is_made_for_machines_that_are_known() -> None:
    assert make_program("x86_64")[:4] == make_program("aarch64")[:4] == b"\x7fELF"
    with pytest.raises(DriverFailed):
        make_program("vax")


def test_what_can_change_while_it_runs_isnt_in_the_way() -> None:
    assert list_frozen(PLAN, change(cpu=2.0, memory_bytes=1, pids=9, incarnation=2)) == []
    assert list_frozen(PLAN, change(layers=["/l2"], hostname="x")) == ["layers", "hostname"]


def test_a_line_of_the_log_says_when_where_and_what() -> None:
    line = parse_line(b"2026-11-21T00:26:15.063230111+01:00 stderr F a  b ")
    assert line is not None and (line.channel, line.data) == ("stderr", b"a  b \n")
    assert line.at == pytest.approx(1795217175.06323)
    part = parse_line(b"2026-11-21T00:26:15.5Z stdout P half")
    assert part is not None and part.data == b"half" and part.at == pytest.approx(1795220775.5)
    assert parse_line(b"nonsense") is None and parse_line(b"x stdout F y") is None


def entry(number: int) -> bytes:
    return b"2026-11-21T00:26:15.0Z stdout F %d\n" % number


async def collect(log: Path, **how: Any) -> list[int]:
    options: dict[str, Any] = {"tail": -1, "follow": False, "has_ended": lambda: True} | how
    return [int(line.data) async for line in read_lines(log, SystemClock(), **options)]


async def test_a_log_is_read_over_its_turn_and_from_its_end(tmp_path: Path) -> None:
    log = tmp_path / "log"
    turned(log).write_bytes(entry(1) + entry(2))
    log.write_bytes(entry(3) + entry(4) + b"2026-11-21T00:26:15.0Z stdout F half")
    assert await collect(log) == [1, 2, 3, 4]
    assert await collect(log, tail=3) == [2, 3, 4]
    assert await collect(log, tail=0) == []
    assert await collect(tmp_path / "none") == []


@pytest.mark.parametrize("tail", [5, -1])
async def test_others_have_their_turn_while_a_long_log_is_read(tmp_path: Path, tail: int) -> None:
    log, turns = tmp_path / "log", 0
    log.write_bytes(b"nothing of a container\n" * 30_000 + entry(1))

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count_turns())
    try:
        assert await collect(log, tail=tail) == [1]
    finally:
        counting.cancel()
    assert turns > 1


async def test_a_log_is_followed_over_its_turn_to_the_end(tmp_path: Path) -> None:
    log, ended = tmp_path / "log", asyncio.Event()
    log.write_bytes(entry(1))
    seen: list[LogLine] = []

    async def follow() -> None:
        async for line in read_lines(log, SystemClock(), tail=-1, follow=True, has_ended=ended.is_set):
            seen.append(line)  # noqa: PERF401 (looked at while it grows)

    following = asyncio.create_task(follow())
    await asyncio.sleep(0.15)
    with open(log, "ab") as file:
        file.write(entry(2))
    log.replace(turned(log))
    log.write_bytes(entry(3))
    await asyncio.sleep(0.3)
    with open(log, "ab") as file:
        file.write(entry(4))
    ended.set()
    await asyncio.wait_for(following, 60)
    assert [int(line.data) for line in seen] == [1, 2, 3, 4]


def test_a_log_that_has_grown_long_is_turned_over_and_conmon_itself_knows_a_limit(tmp_path: Path) -> None:
    log, reopened = tmp_path / "log", []
    log.write_bytes(b"x" * (TURN_BYTES - 1))
    turned(log).write_bytes(b"older")
    turn_over(log, lambda: reopened.append(1))
    assert not reopened and turned(log).read_bytes() == b"older"
    log.write_bytes(b"x" * TURN_BYTES)
    turn_over(log, lambda: reopened.append(1))
    assert reopened and not log.exists() and turned(log).stat().st_size == TURN_BYTES
    words = plan_shim(PLAN, ContainerPaths(tmp_path, tmp_path), Runtime("crun", tmp_path), [])
    assert int(words[words.index("--log-size-max") + 1]) == 64 << 20


def test_what_a_shim_complains_of_without_end_is_shortened_and_it_goes_on_behind_that(tmp_path: Path) -> None:
    said, fifo = tmp_path / "shim.log", tmp_path / "more"
    os.mkfifo(fifo)
    created = """echo '{"data": 7}' >/proc/self/fd/$_OCI_SYNCPIPE"""
    text = f'yes complaint | head -c 3000000 >&2; {created}; (cat "$1" >&2; echo done >"$1") &'
    run_shim(["sh", "-c", text, "sh", str(fifo)], said, SystemClock())
    assert said.stat().st_size == 3_000_000
    shorten_complaints(said)
    assert said.stat().st_size == 64 << 10
    fifo.write_text("last\n")
    assert fifo.read_text() == "done\n"
    told = said.read_bytes()
    assert told.endswith(b"complaint\nlast\n") and b"\0" not in told and len(told) == (64 << 10) + 5
    run_shim(["sh", "-c", created], said, SystemClock())
    assert said.read_bytes() == b""


async def test_who_reads_a_long_log_lets_others_have_their_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container prints as fast as it can: to read on until there is nothing more might take for ever."""
    log, turns = tmp_path / "log", 0
    monkeypatch.setattr(logs, "READ_BYTES", 16 << 10)
    log.write_bytes(b"".join(map(entry, range(20_000))))

    async def take_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    beside = asyncio.create_task(take_turns())
    for how in ({}, {"tail": 15_000}, {"tail": 0, "follow": True}):
        turns, ended = 0, threading.Event()
        options = {"tail": -1, "follow": False, "has_ended": ended.is_set} | how
        lines = read_lines(log, SystemClock(), **options)
        if how.get("follow"):
            waiting = asyncio.ensure_future(anext(lines))
            await asyncio.sleep(0.05)
            with open(log, "ab") as file:
                file.write(b"".join(map(entry, range(20_000))))
            await asyncio.wait_for(waiting, 60)
            turns = 0
        ended.set()
        count = sum([1 async for _ in lines])
        assert count >= 15_000 and turns >= 20
    beside.cancel()


async def test_who_follows_a_log_over_many_turns_keeps_no_old_file_open(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(entry(0))
    lines = read_lines(log, SystemClock(), tail=-1, follow=True, has_ended=lambda: False)
    for number in range(1, 6):
        assert int((await anext(lines)).data) == number - 1
        waiting = asyncio.ensure_future(anext(lines))
        await asyncio.sleep(0.15)
        log.replace(turned(log))
        log.write_bytes(entry(number) + entry(number))
        assert int((await asyncio.wait_for(waiting, 60)).data) == number
        held = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
        assert sum(str(tmp_path) in name for name in held) <= 1
    await lines.aclose()


async def test_who_follows_too_slowly_is_told_that_lines_are_missing(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(entry(0))
    lines = read_lines(log, SystemClock(), tail=-1, follow=True, has_ended=lambda: False)
    assert int((await anext(lines)).data) == 0
    for number in range(1, 4):  # a turn between the first two would not be one too many
        log.replace(turned(log))
        log.write_bytes(entry(number))
    seen = [await asyncio.wait_for(anext(lines), 60) for _ in range(2)]
    assert [line.data for line in seen] == [logs.GAP, b"3\n"] and seen[0].channel == "stderr"
    await lines.aclose()


async def test_who_follows_a_container_that_is_only_being_started_hears_its_first_words(tmp_path: Path) -> None:
    here = Host(
        "n1", "u", str(tmp_path), str(tmp_path), "w", "127.0.0.1", "lo", "weft/none", Capacity(1, 1 << 30, 1 << 30)
    )
    driver = OciDriver(here)
    starting = msgspec.structs.replace(RECORD, started=False, process=None)
    container = driver._add(starting, Runtime("/bin/false", tmp_path))
    container.paths.state.mkdir(parents=True)

    async def follow() -> list[bytes]:
        return [line.data async for line in driver.read_log("c1", follow=True)]

    following = asyncio.ensure_future(follow())
    await asyncio.wait([following], timeout=0.2)
    starting.started = True
    container.paths.log.write_bytes(entry(1))
    starting.end = ContainerEnd("stopped", "exited")
    assert await following == [b"1\n"]


async def test_a_carriage_return_is_part_of_a_line(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"2026-11-21T00:26:15.0Z stdout F 10 %\r20 %\n")
    options: dict[str, Any] = {"tail": -1, "follow": False, "has_ended": lambda: True}
    assert [line.data async for line in read_lines(log, SystemClock(), **options)] == [b"10 %\r20 %\n"]


def test_who_runs_is_read_beside_the_record_and_only_if_it_is_of_that_run(tmp_path: Path) -> None:
    paths = ContainerPaths(tmp_path / "run", tmp_path / "state")
    paths.run.mkdir()
    began = msgspec.structs.replace(RECORD, started=False, process=None, shim=None)
    write_record(paths, began)
    assert read_record(paths) == began
    note_begun(paths, msgspec.structs.replace(RECORD, started_at=began.started_at - 1))
    assert read_record(paths) == began
    note_begun(paths, RECORD)
    known = read_record(paths)
    assert known is not None and known.started and (known.process, known.shim) == (RECORD.process, RECORD.shim)
    paths.begun.write_bytes(b"\0\0")
    assert read_record(paths) == began


def test_a_log_is_read_on_from_a_position_also_after_it_was_turned_over(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert read_after(log, "") == LogPiece([], "")
    log.touch()  # a container that has printed nothing yet
    assert read_after(log, "") == LogPiece([], "")

    def say(*words: str) -> None:
        with open(log, "a") as file:
            file.writelines(
                f"2026-01-31T12:00:00.{number:09d}+00:00 stdout F {word}\n" for number, word in enumerate(words)
            )

    def read(position: str) -> tuple[list[bytes], str, bool]:
        found = []
        while (piece := read_after(log, position)).lines:
            position = piece.position
            found += [line.data for line in piece.lines]
        return found, piece.position, piece.missed

    say("one", "two")
    lines, position, _ = read("")
    assert lines == [b"one\n", b"two\n"]
    say("three")
    log.rename(turned(log))
    log.write_text("2026-01-31T12:00:01.000000009+00:00 stderr F four\n2026-01-31T12:00:01.1+00:00 std")
    lines, after, missed = read(position)
    assert (lines, missed) == ([b"three\n", b"four\n"], False)
    log.rename(turned(log))
    log.write_text("2026-01-31T12:00:02.000000009+00:00 stderr F five\n")
    assert read(after)[0] == [b"five\n"]
    first = read_after(log, position)  # what it stands for is gone
    assert first.missed and first.lines[0].data == b"four\n"
