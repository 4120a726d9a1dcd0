"""Code that is no good, with real instances of both isolations: a typed error to the caller, the instance gone, and a neighbour on
the same node that doesn't notice."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from function_lab import FunctionLab, open_lab
from tests.long import mark_long

from weft.agent.function.output import BURST_BYTES, BYTES_PER_SECOND
from weft.contracts.driver.function import Recipe
from weft.protocol.invocations import InvocationAnswer

pytestmark = [pytest.mark.host, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

NEIGHBOUR = "def handler(event, context):\n    return event\n"


@pytest_asyncio.fixture(params=["process", "container"])
async def lab(folder: Path, request: pytest.FixtureRequest) -> AsyncIterator[FunctionLab]:
    async with open_lab(folder, request.param) as lab:
        yield lab


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The node's state: its base is unpacked once for all tests."""
    return tmp_path_factory.mktemp("functions")


async def invoke_bad(
    lab: FunctionLab, body: str, *, seconds: float = 5.0, **fields: object
) -> tuple[InvocationAnswer, Recipe]:
    """What becomes of a handler with that body; a neighbour is invoked beside it all the time, and its instance stays."""
    neighbour = lab.recipe({"app.py": NEIGHBOUR})
    first = await lab.invoke(neighbour, 0)
    assert first.error == "", first
    bad = lab.recipe({"app.py": body}, timeout=seconds, **fields)
    id = lab.ask(bad, {})
    answering = asyncio.ensure_future(lab.answer(id))
    asked = 0
    while not answering.done():
        asked += 1
        answer = await lab.invoke(neighbour, asked)
        assert (answer.payload, answer.error, answer.start) == (b"%d" % asked, "", "warm")
        await asyncio.sleep(0.02)
    assert (await lab.invoke(neighbour, "after")).start == "warm"
    return await answering, bad


async def assert_gone(lab: FunctionLab) -> None:
    """Only the neighbour's instance is left."""
    await lab.until(lambda: len(lab.groups()) == 1)


HANDLER = "def handler(event, context):\n"


@pytest.mark.parametrize("lab", mark_long(("process", "container"), "container"), indirect=True)
@pytest.mark.parametrize(
    ("body", "error_type", "words"),
    [
        ("import nosuch\n", "Runtime.ImportModuleError", "nosuch"),
        ("def handler(:\n", "Runtime.UserCodeSyntaxError", "Syntax error"),
        ("def other(event, context): pass\n", "Runtime.HandlerNotFound", "handler"),
        ("import sys; sys.exit(3)\n", "Runtime.ExitError", "3"),
        (f"import os\n{HANDLER}    os._exit(7)\n", "Runtime.ExitError", "status 7"),
        (f"import ctypes\n{HANDLER}    ctypes.string_at(0)\n", "Runtime.ExitError", "SIGSEGV"),
        (f"{HANDLER}    while True: pass\n", "Function.TimedOut", "timed out after 1.00 seconds"),
        (
            f"import signal, time\n{HANDLER}    signal.signal(15, signal.SIG_IGN)\n    time.sleep(60)\n",
            "Function.TimedOut",
            "timed out",
        ),
        (f"{HANDLER}    return 'x' * (10 << 20)\n", "Function.ResponseTooLarge", "6 MiB"),
        (
            f"{HANDLER}    kept = []\n    while True: kept.append(b'x' * (8 << 20))\n",
            "Function.OutOfMemory",
            "128 MiB of memory",
        ),
    ],
    ids="doesnt-import syntax no-handler exits-at-import exits dies loops ignores-signals ten-megabytes all-memory".split(),
)
async def test_bad_code_has_a_typed_end(lab: FunctionLab, body: str, error_type: str, words: str) -> None:
    seconds = 1.0 if error_type == "Function.TimedOut" else 10.0
    answer, _ = await invoke_bad(lab, body, seconds=seconds)
    said = json.loads(answer.payload)
    assert (answer.error, answer.error_type) == ("Unhandled", error_type), (said, answer)
    assert said["errorType"] == error_type and words in said["errorMessage"], said
    await assert_gone(lab)


async def test_an_exception_is_told_and_the_instance_stays(lab: FunctionLab) -> None:
    recipe = lab.recipe({"app.py": f"{HANDLER}    return event['missing']\n"})
    answer = await lab.invoke(recipe, {})
    said = json.loads(answer.payload)
    assert (answer.error, answer.error_type, said["errorMessage"]) == ("Unhandled", "KeyError", "'missing'")
    assert "app.py" in said["stackTrace"][0] and (await lab.invoke(recipe, {"missing": 1})).start == "warm"


async def test_a_fork_bomb_ends_at_its_own_limit(lab: FunctionLab) -> None:
    body = f"import os\n{HANDLER}    while True:\n        try: os.fork()\n        except OSError: pass\n"
    answer, _ = await invoke_bad(lab, body, seconds=2.0, pids=64)
    assert answer.error_type in ("Function.TimedOut", "Function.OutOfMemory"), answer
    await assert_gone(lab)


async def test_a_full_disk_is_an_error_of_its_own_code_and_the_rest_cant_be_written(lab: FunctionLab) -> None:
    body = f"""import os
{HANDLER}
    try:
        with open("/tmp/fill", "wb") as file:
            while True: file.write(b"x" * (1 << 20))
    except OSError as error:
        said = error.strerror
    kept = os.stat("/tmp/fill").st_size
    os.unlink("/tmp/fill")
    refused = []
    for place in ("/x", "/var/task/x", "/etc/x", "/dev/x", "/proc/sys/kernel/hostname", "/opt/ric/x"):
        try: open(place, "w").write("x")
        except OSError as error: refused.append(place)
    return [said, kept, refused]
"""
    answer, _ = await invoke_bad(lab, body, seconds=10.0)
    said, kept, refused = json.loads(answer.payload)
    assert said == "No space left on device" and 30 << 20 <= kept <= 32 << 20 and len(refused) == 6


@pytest.mark.parametrize("lab", mark_long(("process", "container"), "container"), indirect=True)
async def test_prints_without_end_are_slowed_and_bounded(lab: FunctionLab) -> None:
    answer, recipe = await invoke_bad(lab, f"{HANDLER}    while True: print('spam' * 100)\n", seconds=3.0)
    assert answer.error_type == "Function.TimedOut" and len(answer.tail) == 4096 and b"spam" in answer.tail
    # However late the clock of a busy machine is; the last line, which is cut, gets an end.
    assert len(lab.printed(recipe)) <= BURST_BYTES + 3 * BYTES_PER_SECOND + len("\n")
    await assert_gone(lab)


async def test_walls_hold(lab: FunctionLab, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cret")
    tmp_path.chmod(0o755)
    with socket.create_server(("0.0.0.0", 0)) as listening:
        port = listening.getsockname()[1]
        place = f"\0weft-test-{os.getpid()}"
        with socket.socket(socket.AF_UNIX) as local:
            local.bind(place)
            local.listen()
            body = f"""import ctypes, os, socket
libc = ctypes.CDLL(None, use_errno=True)
def tries(what):
    try: return "DONE: " + repr(what())[:100]
    except OSError as error: return error.strerror or str(error)
def call(*args):
    if libc.syscall(*args) < 0: raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
def connect(family, address):
    with socket.socket(family) as s:
        s.settimeout(1)
        s.connect(address)
{HANDLER}
    address = socket.inet_aton
    found = {{}}
    for host in event["hosts"]:
        found["tcp " + host] = tries(lambda: connect(socket.AF_INET, (host, event["port"])))
    found["metadata"] = tries(lambda: connect(socket.AF_INET, ("169.254.169.254", 80)))
    found["abstract"] = tries(lambda: connect(socket.AF_UNIX, event["place"]))
    found["vsock"] = tries(lambda: connect(40, (2, 1024)))
    found["packet"] = tries(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
    found["secret"] = tries(lambda: open(event["secret"]).read())
    places = "/etc/shadow /proc/1/environ /proc/kcore /sys/fs/cgroup/cgroup.procs /dev/kmsg /dev/sda /dev/vda"
    for path in places.split():
        found[path] = tries(lambda: open(path, "rb").read(10))
    found["mount"] = tries(lambda: call(165, b"tmpfs", b"/tmp", b"tmpfs", 0, None))
    found["unshare"] = tries(lambda: call(272, 0x10000000))
    found["setns"] = tries(lambda: call(308, 0, 0))
    found["bpf"] = tries(lambda: call(321, 0, None, 0))
    found["keyctl"] = tries(lambda: call(250, 0, 0))
    found["ptrace 1"] = tries(lambda: call(101, 16, 1, None, None))
    found["reboot"] = tries(lambda: call(169, 0xfee1dead, 672274793, 0x1234567, None))
    found["setuid"] = tries(lambda: os.setuid(0))
    found["mknod"] = tries(lambda: os.mknod("/tmp/null", 0o20666, os.makedev(1, 3)))
    found["pids"] = sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
    found["uid"] = os.getuid()
    states = [open(path).read() for path in ("/proc/1/status", "/proc/self/status")]
    found["filtered"] = [text.partition("Seccomp:")[2].split()[0] for text in states]
    found["kill"] = tries(lambda: os.kill(event["pid"], 9))
    found["mounts"] = open("/proc/self/mountinfo").read()
    return found
"""
            event = {
                "hosts": ["127.0.0.1", "10.0.2.2", "169.254.100.1"],
                "port": port,
                "place": place,
                "secret": str(secret),
                "pid": os.getpid(),
            }
            answer = await lab.invoke(lab.recipe({"app.py": body}, timeout=30.0), event)
    assert answer.error == "", answer
    found = json.loads(answer.payload)
    assert found.pop("uid") == 1000 and found.pop("filtered") == ["2", "2"]
    assert max(found.pop("pids")) < 20, found
    mounts = found.pop("mounts")  # where its folders lie on the node is none of its business
    assert " /var/task " in mounts and not any(
        str(path) in mounts for path in (lab.host.state_dir, lab.host.run_dir)
    ), mounts
    done = {name: said for name, said in found.items() if said.startswith("DONE")}
    if "/proc/1/environ" in done:  # its own sandbox's first process, of which nothing is told
        assert done.pop("/proc/1/environ") == "DONE: b'PATH=/usr/'", found
    assert done == {}, found


async def test_an_instance_that_dies_between_invocations_is_replaced(lab: FunctionLab) -> None:
    body = f"import os, threading, time\n{HANDLER}    threading.Timer(0.05, lambda: os._exit(1)).start()\n    return os.getpid()\n"
    recipe = lab.recipe({"app.py": body})
    assert (await lab.invoke(recipe, {})).error == ""
    await lab.until(lambda: lab.groups() == set())
    again = await lab.invoke(recipe, {})
    assert (again.error, again.start) == ("", "cold")
