"""Clients and servers that count what a moving guest's network loses: run inside a namespace.

``serve``: echoes UDP on port 7, counts on TCP port 9 (16 bytes each 5 ms), answers HTTP on port 80. ``watch
KIND:HOST:PORT…``: asks without a pause until its input has a line, then prints one JSON line, by argument: ``failed``, ``asked``,
the longest ``gap_ms`` between two answers. Kinds: udp (one each 2 ms), count, http. Either is ready once it really is: all
its ports are open, or each of its clients has had some answers.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable

ASK_SECONDS = 0.002
FIRST_PORT, PORTS = 10000, 2000
PATIENCE_SECONDS = 20.0
FIRST_ANSWERS = 5
over = threading.Event()


def serve() -> None:
    ear = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    ear.bind(("", 7))
    threading.Thread(target=echo, args=(ear,), daemon=True).start()
    for port, answer_one in ((9, count_for), (80, answer_to)):
        listening = socket.create_server(("", port), backlog=256)
        threading.Thread(target=accept, args=(listening, answer_one), daemon=True).start()
    print("ready", flush=True)
    sys.stdin.readline()


def echo(ear: socket.socket) -> None:
    while True:
        ear.sendto(*ear.recvfrom(99))


def accept(listening: socket.socket, answer_one: Callable[[socket.socket], None]) -> None:
    while True:
        link, _ = listening.accept()
        threading.Thread(target=answer_one, args=(link,), daemon=True).start()


def count_for(link: socket.socket) -> None:
    number = 0
    try:
        while True:
            link.sendall(b"%15d\n" % number)
            number += 1
            time.sleep(0.005)
    except OSError:
        link.close()


def answer_to(link: socket.socket) -> None:
    try:
        with link:
            link.settimeout(PATIENCE_SECONDS)
            link.recv(4096)
            link.sendall(b"HTTP/1.0 200 OK\r\n\r\nhello")
    except OSError:
        pass


class Tally:
    def __init__(self, first_port: int) -> None:
        self.first_port = first_port
        self.asked = self.failed = self.answers = 0
        self.gap = 0.0
        self.last: float | None = None
        self.problem = ""

    def hear(self) -> None:
        now = time.monotonic()
        self.answers += 1
        if self.last is not None:
            self.gap = max(self.gap, now - self.last)
        self.last = now

    def fail(self, problem: object) -> None:
        self.failed += 1
        self.problem = self.problem or repr(problem)


def watch_udp(host: str, port: int, tally: Tally) -> None:
    ear = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    ear.connect((host, port))
    ear.settimeout(2)
    heard: set[bytes] = set()

    def hear() -> None:
        while True:
            try:
                heard.add(ear.recv(99))
                tally.hear()
            except TimeoutError:
                if over.is_set():
                    return
            except OSError:
                pass

    listener = threading.Thread(target=hear)
    listener.start()
    while not over.is_set():
        try:
            ear.send(b"%d" % tally.asked)
        except OSError as problem:
            tally.problem = repr(problem)
        tally.asked += 1
        time.sleep(ASK_SECONDS)
    listener.join()
    tally.failed = tally.asked - len(heard)


def watch_count(host: str, port: int, tally: Tally) -> None:
    try:
        with socket.create_connection((host, port), PATIENCE_SECONDS) as link:
            link.settimeout(PATIENCE_SECONDS)
            with link.makefile("rb") as lines:
                while not over.is_set():
                    number = int(lines.readline() or b"-1")
                    if number != tally.asked:
                        raise ValueError(f"{number} instead of {tally.asked}")
                    tally.asked += 1
                    tally.hear()
    except (OSError, ValueError) as problem:
        tally.fail(problem)


def watch_http(host: str, port: int, tally: Tally) -> None:
    while not over.is_set():
        tally.asked += 1
        try:
            # The guest sees one client behind several published ports: its ports must tell its connections apart.
            own = ("", tally.first_port + tally.asked % PORTS)
            with socket.create_connection((host, port), PATIENCE_SECONDS, own) as link:
                link.settimeout(PATIENCE_SECONDS)
                link.sendall(b"GET / HTTP/1.0\r\n\r\n")
                if not b"".join(iter(lambda: link.recv(99), b"")).endswith(b"hello"):
                    raise ValueError("cut short")
            tally.hear()
        except (OSError, ValueError) as problem:
            tally.fail(problem)
        time.sleep(0.005)


def watch(*what: str) -> None:
    kinds = {"udp": watch_udp, "count": watch_count, "http": watch_http}
    tallies = {}
    workers = []
    for index, argument in enumerate(what):
        kind, host, port = argument.split(":")
        tallies[argument] = Tally(FIRST_PORT + index * PORTS)
        workers.append(threading.Thread(target=kinds[kind], args=(host, int(port), tallies[argument])))
    for worker in workers:
        worker.start()
    deadline = time.monotonic() + 3 * PATIENCE_SECONDS
    while any(t.answers < FIRST_ANSWERS and not t.failed for t in tallies.values()):
        if time.monotonic() > deadline:
            os._exit(1)  # whoever waits for it sees that it didn't start
        time.sleep(0.02)
    print("ready", flush=True)
    sys.stdin.readline()
    over.set()
    for worker in workers:
        worker.join()
    said = {
        name: {
            "asked": t.asked,
            "failed": t.failed,
            "gap_ms": round(t.gap * 1000),
            "problem": t.problem,
        }
        for name, t in tallies.items()
    }
    print(json.dumps(said), flush=True)


if __name__ == "__main__":
    {"serve": serve, "watch": watch}[sys.argv[1]](*sys.argv[2:])
