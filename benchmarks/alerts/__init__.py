"""From a condition that becomes true to the call of a webhook; and a server that is killed between the two."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from benchmarks.fabric_server import WEFT, running_server
from benchmarks.measurement import Figure, Measurement, spread
from weft.client import Client

INTERVAL = 10.0
RULES, APART = 6, 3.7  # the conditions become true so many seconds apart: at all moments of an interval
GOAL_SECONDS = 2 * INTERVAL + 1
_PATIENCE_SECONDS = 60.0


class Hook:
    """A webhook: when each rule's notification came, by rule and type. It answers 503 while ``is_down``."""

    def __init__(self) -> None:
        self.calls: list[tuple[float, dict[str, Any]]] = []
        self.refused = 0
        self.is_down = False
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if hook.is_down:
                    hook.refused += 1
                else:
                    hook.calls.append((time.time(), body))
                self.send_response(503 if hook.is_down else 204)
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/"

    def find(self, rule: str) -> list[float]:
        """When it was notified that the rule fires."""
        return [at for at, body in self.calls if rule in json.dumps(body) and "firing" in json.dumps(body)]


def make_rule(client: Client, name: str, moment: float) -> None:
    """One whose condition is true from ``moment`` on."""
    client.create({"kind": "alertrule", "name": name, "spec": {"expr": f"time() > {moment:.3f}", "summary": name}})


def await_(holds: Callable[[], object]) -> None:
    begun = time.monotonic()
    while not holds():
        if time.monotonic() - begun > _PATIENCE_SECONDS:
            raise SystemExit("no webhook was called")
        time.sleep(0.05)


SERVER = (
    f'exec "{WEFT}" server --state "$0" --context "$0/context.json" --listen 127.0.0.1:0 --gateway 127.0.0.1:0'
    f" --alert-interval {INTERVAL:g}s --receivers-allow 127.0.0.0/8"
)


def measure() -> Measurement:
    hook, waits = Hook(), list[float]()
    with running_server(command=["sh", "-c", SERVER]) as server:
        client = Client(server.context, patience_seconds=30.0)
        spec = {"type": "webhook", "url": hook.url}
        client.create({"kind": "receiver", "name": "hook", "spec": spec})
        begun = time.time() + 15.0
        for number in range(RULES):
            make_rule(client, f"true-{number}", begun + APART * number)
        for number in range(RULES):
            await_(partial(hook.find, f"true-{number}"))
            waits.append(hook.find(f"true-{number}")[0] - begun - APART * number)
        hook.is_down = True
        make_rule(client, "killed", 0.0)
        await_(lambda: hook.refused)
        for pid in reversed(server.pids):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        hook.is_down = False
        again = subprocess.Popen(["sh", "-c", SERVER, str(server.folder)], stderr=subprocess.DEVNULL)
        try:
            await_(lambda: hook.find("killed"))
            time.sleep(2 * INTERVAL)
        finally:
            again.terminate()
            again.wait(20)
    calls, most = len(hook.find("killed")), max(waits)
    return Measurement(
        "alerts",
        f"From a condition that becomes true to the call of a webhook, with rules evaluated every {INTERVAL:g} s.",
        [
            Figure(
                f"condition true → webhook, {RULES} rules",
                spread(waits, "s", 1.0, 1),
                goal=f"≤ {GOAL_SECONDS:g} s",
                kept=most <= GOAL_SECONDS,
            ),
            Figure(
                "server killed (kill -9) between state and webhook",
                f"{calls} call{'s' * (calls != 1)}",
                goal="once",
                kept=calls == 1,
            ),
        ],
    )
