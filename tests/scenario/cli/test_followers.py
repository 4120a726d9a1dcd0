"""Commands that follow go on when the server restarts: each of them, at one restart."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from tests.scenario.cli_lab import Fabric, start_fabric

from weft.cli.app import make_root

# By the verb. The drivers here keep no flows, which are followed as metrics are, and no console.
FOLLOWERS = {
    "events": ("events -f",),
    "flows": (),
    "get": ("get vms -w",),
    "list": ("vm list -w",),
    "logs": ("logs vm/web -f --aggregate", "logs server/api -f", "logs node/n1 -f"),
    "metrics": ("vm metrics web -w",),
    "operation": ("operation watch",),
    "ps": ("ps -w",),
    "rollout": ("rollout status shop -w",),
    "top": ("top nodes -w", "top vms -w"),
}
QUIET = ("logs vm/web -f --aggregate", "rollout status shop -w")  # nothing new comes of these


@pytest.fixture(scope="module")
def fabric() -> Iterator[Fabric]:
    with start_fabric() as fabric:
        yield fabric


def list_followers(command: click.Command, path: tuple[str, ...]) -> Iterator[str]:
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            if (inner := command.get_command(context, name)) is not None:
                yield from list_followers(inner, (*path, name))
    elif any({"--watch", "--follow"} & set(param.opts) for param in command.params):
        yield path[-1]


class Follower:
    """A command that runs, and what it has printed."""

    def __init__(self, fabric: Fabric, words: str) -> None:
        self.words, self.printed = words, list[str]()
        self.process = fabric.spawn(*words.split(), stderr=subprocess.STDOUT)
        self._heard = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._heard:
                self.printed.append(line)
                self._heard.notify_all()
        with self._heard:
            self.process.wait()
            self._heard.notify_all()

    @property
    def spent(self) -> list[str]:
        """The CPU time that it has taken, in ticks, for itself and within the kernel."""
        return Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]

    def hears_more_than(self, count: int) -> bool:
        with self._heard:
            return self._heard.wait_for(lambda: len(self.printed) > count, timeout=60)


def test_every_command_that_follows_goes_on_after_a_restart_of_the_server(fabric: Fabric) -> None:
    assert {*list_followers(make_root(), ()), "operation"} == set(FOLLOWERS)
    has = ("--image", "tiny", "--cpu", "1", "--memory", "128M")
    waits = ("--image", "registry.example.org/a:1", *has[2:])  # nobody answers there
    for words in (("vm", "create", "web", *has), ("deployment", "create", "shop", *waits, "--detach")):
        said = fabric.weft(*words)
        assert said.code == 0, said.err
    # The quiet ones first: they follow by the time that all others have printed something.
    names = sorted((words for each in FOLLOWERS.values() for words in each), key=lambda words: words not in QUIET)
    followers = [Follower(fabric, words) for words in names]
    try:
        assert fabric.weft("vm", "create", "early", *has, "--detach").code == 0
        assert [one.words for one in followers if one.words not in QUIET and not one.hears_more_than(0)] == []
        quiet, spent = [one for one in followers if one.words in QUIET], list[list[str]]()
        for _ in range(15):  # what prints nothing follows once it does nothing any more
            if spent == (spent := [one.spent for one in quiet]):
                break
            time.sleep(2.0)
        fabric.server.kill()
        fabric.server.wait(15)
        fabric.start_server()
        heard = {one.words: len(one.printed) for one in followers}
        assert fabric.weft("vm", "create", "late", *has, "--detach").code == 0
        # One operation that stays: those that end between two reads of the list are never shown.
        assert fabric.weft("deployment", "create", "stall", *waits, "--detach").code == 0
        for one in followers:
            assert one.words in QUIET or one.hears_more_than(heard[one.words]), (one.words, one.printed[-3:])
        assert [(one.words, one.printed[-3:]) for one in followers if one.process.poll() is not None] == []
    finally:
        for one in followers:
            one.process.kill()
            one.process.wait()
