"""Who invokes functions without a pause while things are killed, and who counts at the other end how often each one ran."""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from collections import Counter
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from benchmarks.soak.verdicts import Call

# Tells the witness that it runs before it does anything, and is what the event says then.
CODE = """
import os, socket, time
def handler(event, context):
    with socket.create_connection((os.environ["WITNESS"], int(os.environ["PORT"])), 10) as link:
        link.sendall(f"{event['n']} {context.aws_request_id}\\n".encode())
        link.recv(3)
    time.sleep(event["seconds"])
    if event["act"] == "error":
        raise ValueError("as it was asked to")
    if event["act"] == "exit":
        os._exit(3)
    return event["n"]
"""
PATIENCE_SECONDS = 90.0


class Witness:
    """Hears of each time that the code runs: ``seen`` by number."""

    def __init__(self, address: str) -> None:
        self._door = socket.create_server((address, 0), backlog=128)
        self.address, self.port = address, int(self._door.getsockname()[1])
        self.seen: Counter[int] = Counter()
        self._lock = threading.Lock()
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._door.close()

    def _serve(self) -> None:
        while True:
            try:
                link, _ = self._door.accept()
            except OSError:
                return
            threading.Thread(target=self._hear, args=(link,), daemon=True).start()

    def _hear(self, link: socket.socket) -> None:
        with link:
            link.settimeout(10)
            try:
                said = link.makefile("rb").readline()
                with self._lock:
                    self.seen[int(said.split()[0])] += 1
                link.sendall(b"ok\n")
            except (OSError, ValueError, IndexError):
                return


class Invoker:
    """A thread that calls now this function, now that one; all it does follows from ``seed`` and ``number``."""

    def __init__(self, seed: int, number: int, functions: list[str], endpoint: dict[str, str]) -> None:
        self.calls: list[Call] = []
        self._draw = random.Random(f"{seed}/invoker {number}")
        self._number, self._functions, self._over = number, functions, threading.Event()
        self._clients = {"once": _connect(endpoint, 1), "patient": _connect(endpoint, 8)}
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._over.set()
        self._thread.join(2 * PATIENCE_SECONDS)

    @property
    def hangs(self) -> bool:
        return self._thread.is_alive()

    def _run(self) -> None:
        count = 0
        while not self._over.is_set():
            count += 1
            self.calls.append(self._call(self._number * 1_000_000 + count))
            time.sleep(self._draw.random() * 0.4)

    def _call(self, n: int) -> Call:
        draw = self._draw
        function, how = draw.choice(self._functions), draw.choice(["once", "once", "patient", "patient", "event"])
        act = draw.choices(["well", "error", "exit"], [20, 2, 1])[0]
        seconds = round(draw.choice([0.0, 0.05, 0.3, 1.5]), 2)
        payload = json.dumps({"n": n, "seconds": seconds, "act": act}).encode()
        kind = "Event" if how == "event" else "RequestResponse"
        client, began = self._clients["once" if how == "event" else how], time.monotonic()
        try:
            told = client.invoke(FunctionName=function, InvocationType=kind, Payload=payload)
            heard = "accepted" if how == "event" else _read(told, n)
        except ClientError as problem:
            heard = str(problem.response["Error"]["Code"])
        except (BotoCoreError, OSError) as problem:
            heard = f"broken ({type(problem).__name__})"
        return Call(n, function, how, act, heard, began, time.monotonic())


def _read(told: dict[str, Any], n: int) -> str:
    said = json.loads(told["Payload"].read())
    if "FunctionError" in told:
        return str(said["errorType"])
    return "answered" if said == n else f"answered {said!r}"


def _connect(endpoint: dict[str, str], attempts: int) -> Any:
    return boto3.client(
        "lambda",
        endpoint_url=endpoint["AWS_ENDPOINT_URL_LAMBDA"],
        region_name=endpoint["AWS_DEFAULT_REGION"],
        verify=endpoint["AWS_CA_BUNDLE"],
        aws_access_key_id=endpoint["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=endpoint["AWS_SECRET_ACCESS_KEY"],
        config=Config(
            retries={"total_max_attempts": attempts, "mode": "standard"},
            read_timeout=PATIENCE_SECONDS,
            connect_timeout=10,
        ),
    )
