"""A real agent that no server answers: programs at its node invoke a function that is kept there, also after kill -9."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from function_lab import open_lab
from tests.node_key import make_node_key

from weft.agent.function.artifacts import BOOT, DURABLE
from weft.agent.function.local.functions import LocalFunctions
from weft.agent.node.enrolment import FILE, Enrolment
from weft.contracts.clock import SystemClock
from weft.protocol.invocations import LocalFunction, ServeLocally
from weft.protocol.report import OpenedSecrets
from weft.trust.ca import Authority

pytestmark = [pytest.mark.host, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

TOKEN = "a-long-token-of-the-shop"
ENTRY = "from weft.launch.entry import main; main()"
LABEL = """
def handler(event, context):
    return {"label": event["item"].upper(), "arn": context.invoked_function_arn}
"""


def enrol(state: Path, uid: str) -> None:
    """As a join leaves it, with a server that doesn't answer."""
    authority = Authority(state / "authority", SystemClock())
    csr = x509.load_pem_x509_csr(make_node_key(state / "node.key").encode())
    (state / "node.crt").write_text(authority.sign_node(csr, uid))
    (state / "ca.crt").write_text(authority.ca)
    (state / FILE).write_bytes(
        msgspec.json.encode(Enrolment("https://127.0.0.1:1", "127.0.0.1:1", "n1", uid, "127.0.0.1"))
    )


def find_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def post(port: int, path: str, token: str) -> tuple[int, Any]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", b'{"item":"milk"}', {"Authorization": f"Bearer {token}"}
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as refused:
        return refused.code, json.loads(refused.read())


class Agent:
    """``weft agent`` as a process, which hears no server."""

    def __init__(self, state: Path, run_dir: Path, cgroup: str, port: int) -> None:
        self.port, self.log = port, state / "agent.log"
        self._command = [sys.executable, "-c", ENTRY, "agent", "n1", "--state", str(state)]
        self._command += ["--run-dir", str(run_dir), "--cgroup", cgroup, "--runtime", "fake", "--network", "fake"]
        self._command += [
            "--container-runtime",
            "none",
            "--functions",
            "auto",
            "--no-devices",
            "--echo-port",
            str(find_port()),
        ]
        self._command += ["--local-functions", f"127.0.0.1:{port}"]
        self.process: asyncio.subprocess.Process

    async def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(*self._command, stdout=log, stderr=log)
        async with asyncio.timeout(120):
            while True:
                try:
                    socket.create_connection(("127.0.0.1", self.port), 5).close()
                    return
                except OSError:
                    assert self.process.returncode is None, self.log.read_text()
                    await asyncio.sleep(0.1)

    async def end(self, number: int) -> None:
        self.process.send_signal(number)
        async with asyncio.timeout(120):
            await self.process.wait()


async def test_an_agent_that_hears_no_server_serves_what_it_kept_also_after_kill_9(tmp_path: Path) -> None:
    async with open_lab(tmp_path, "process") as lab:
        enrol(tmp_path, lab.host.node_uid)
        recipe = lab.recipe({"app.py": LABEL}, timeout=60.0)
        told: list[str] = []

        class Server:
            def read_function_secret(self, node: str, function: str) -> OpenedSecrets:
                return OpenedSecrets({"door": {"token": TOKEN}}, offline=["door"])

        local = LocalFunctions(
            str(tmp_path),
            "n1",
            Server(),  # type: ignore[arg-type]
            lab.parts,
            lab.functions,
            lambda about, type_, reason, message: told.append(reason),
            SystemClock(),
            "http://127.0.0.1:9466",
        )
        await local.start()
        local.take(ServeLocally([LocalFunction("uid", recipe, "door", 4)]))
        await lab.until(lambda: told == ["ServedAtNode"])
        await local.close()
        assert recipe.code is not None and recipe.base is not None
        for kind, blob in (("code", recipe.code), ("bases", recipe.base)):  # it outlasts a power cut
            assert (tmp_path / "functions" / kind / blob.sha256 / BOOT).read_text() == DURABLE
    run_dir = Path(f"/run/weft-fn-{lab.name}a")
    run_dir.mkdir(mode=0o755)
    agent = Agent(tmp_path, run_dir, lab.host.cgroup, find_port())
    said = {"label": "MILK", "arn": "arn:weft:lambda:weft:p:function:hello"}
    try:
        for last in (signal.SIGKILL, signal.SIGTERM):
            await agent.start()
            answers = [await asyncio.to_thread(post, agent.port, "/p/hello", TOKEN) for _ in range(2)]
            assert answers == [(200, said)] * 2, agent.log.read_text()
            assert (await asyncio.to_thread(post, agent.port, "/p/hello", "another-long-token"))[0] == 401
            await agent.end(last)
    finally:
        if agent.process.returncode is None:
            await agent.end(signal.SIGKILL)
        shutil.rmtree(run_dir, ignore_errors=True)
        await lab.driver.recover()
