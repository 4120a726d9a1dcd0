"""Clients and targets of a service: run inside a namespace.

``serve NAME``: answers each line on TCP port 8080 and each datagram on UDP port 5353 with NAME and the asker's address. ``ask
HOST:PORT TIMES [SECONDS]``: that many connections, each with a question; prints how often which answer or error came. ``hold``:
opens TIMES connections, is ready, and asks each again after a line. ``load``: asks, that many times or until a line comes.
``talk``: one datagram from the same socket for each line."""

from __future__ import annotations

import collections
import json
import socket
import sys
import threading
import time


def answer(link: socket.socket, name: str) -> None:
    with link:
        while link.recv(4096):
            link.sendall(f"{name} {link.getpeername()[0]}".encode())


def serve(name: str) -> None:
    ear = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    ear.bind(("", 5353))

    def echo() -> None:
        while True:
            _, peer = ear.recvfrom(99)
            ear.sendto(f"{name} {peer[0]}".encode(), peer)

    threading.Thread(target=echo, daemon=True).start()
    door = socket.create_server(("", 8080), backlog=512)

    def accept() -> None:
        while True:
            threading.Thread(target=answer, args=(door.accept()[0], name), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    print("ready", flush=True)
    sys.stdin.readline()


def open_one(place: str, seconds: float = 5.0) -> socket.socket:
    host, port = place.split(":")
    return socket.create_connection((host, int(port)), seconds)


def ask(link: socket.socket) -> str:
    link.sendall(b"who")
    return link.recv(99).decode()


def ask_all(place: str, times: str, seconds: str = "5") -> None:
    found: collections.Counter[str] = collections.Counter()
    for _ in range(int(times)):
        try:
            with open_one(place, float(seconds)) as link:
                found[ask(link)] += 1
        except OSError as problem:
            found[type(problem).__name__] += 1
    print(json.dumps(found))


def hold(place: str, times: str) -> None:
    links = [open_one(place) for _ in range(int(times))]
    said = [ask(link) for link in links]
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps({"same": sum(ask(link) == was for link, was in zip(links, said, strict=True))}), flush=True)


def load(place: str, times: str = "") -> None:
    """Until it has asked ``times``, or a line comes; says when which failed, by the monotonic clock."""
    over, asked, failed_at = threading.Event(), 0, list[float]()

    def ask_on() -> None:
        nonlocal asked
        while not over.is_set() and (not times or asked < int(times)):
            asked += 1
            began = time.monotonic()
            try:
                with open_one(place) as link:
                    ask(link)
            except OSError:
                failed_at.append(began)

    workers = [threading.Thread(target=ask_on) for _ in range(2)]
    for worker in workers:
        worker.start()
    print("ready", flush=True)
    if not times:
        sys.stdin.readline()
        over.set()
    for worker in workers:
        worker.join()
    print(json.dumps({"asked": asked, "failed_at": failed_at}), flush=True)


def talk(place: str) -> None:
    host, port = place.split(":")
    mouth = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    mouth.settimeout(5)
    mouth.connect((host, int(port)))
    print("ready", flush=True)
    while sys.stdin.readline():
        mouth.send(b"who")
        print(mouth.recv(99).decode(), flush=True)


if __name__ == "__main__":
    {"serve": serve, "ask": ask_all, "hold": hold, "load": load, "talk": talk}[sys.argv[1]](*sys.argv[2:])
