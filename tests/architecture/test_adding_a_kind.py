"""A kind that behaves is two files, its own and its controller's, and an entry in two registries: a toy is added to a copy of the
source, and all parts of weft know it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from source import ROOT, SOURCE

KIND = '''
"""Toy: something to play with, in pairs of one colour."""

from __future__ import annotations

from typing import Annotated

import msgspec

from weft.kinds.fields.cells import NAME, text
from weft.kinds.parts.goal import reaches
from weft.kinds.record import Access, Column, Display, Index, Kind, Lifetime, Verb
from weft.objects.schema import field, words


class ToySpec(msgspec.Struct, kw_only=True):
    colour: Annotated[str, field("Its colour", change="live")]
    wound: Annotated[bool, field("Whether it is wound up", change="live")] = False


class ToyStatus(msgspec.Struct, kw_only=True):
    phase: Annotated[str, words("Pending", "Resting", "Playing")] = "Pending"
    playmates: list[str] = []
    observed_generation: int = 0


TOYS_BY_COLOUR = Index("toys by colour")

TOY = Kind(
    name="toy",
    plural="toys",
    title="toy",
    summary="Something to play with",
    spec=ToySpec,
    status=ToyStatus,
    indexes={TOYS_BY_COLOUR: lambda item: (item.spec(ToySpec).colour,)},
    verbs=(Verb("wind", "Wind it up", change=lambda obj, _: {**obj["spec"], "wound": True}, needs="operate"),),
    access=Access(readers="project", status_writer="toys"),
    display=Display(
        columns=(NAME, Column("COLOUR", text("spec.colour")), Column("PHASE", text("status.phase", "Pending"))),
    ),
    lifetime=Lifetime(goals={"create": reaches("Resting", "Playing"), "wind": reaches("Playing")}),
)
'''

CONTROLLER = '''
"""Says of each toy whether it plays, and with which others of its colour."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from weft.controllers.loop import Plan
from weft.informer.commit import Commit, edit, put, unchanged
from weft.informer.view import Changed, View
from weft.kinds.toy import TOYS_BY_COLOUR, ToySpec, ToyStatus
from weft.objects.envelope import merge_part


class Toys:
    name = "toys"
    kinds = ("toy",)

    def route(self, view: View, change: Changed) -> Iterable[str]:
        colours = {item.spec(ToySpec).colour for item in (change.old, change.new) if item is not None}
        return [toy.key for colour in sorted(colours) for toy in view.find(TOYS_BY_COLOUR, colour)]

    def plan(self, view: View, keys: Sequence[str], now: float) -> Plan:
        plan = Plan()
        for toy in filter(None, map(view.get, keys)):
            spec, others = toy.spec(ToySpec), view.find(TOYS_BY_COLOUR, toy.spec(ToySpec).colour)
            status = ToyStatus(
                phase="Playing" if spec.wound else "Resting",
                playmates=[other.envelope.name for other in others if other.uid != toy.uid],
                observed_generation=toy.envelope.generation,
            )
            if status != toy.status(ToyStatus):
                envelope = edit(toy)
                envelope.status = merge_part(envelope.status, status)
                plan.commits.append(Commit(toy.key, [put(envelope)], [unchanged(toy)]))
        return plan
'''

# An entry is a line, and the line that imports it.
ENTRIES = {
    "kinds/registry.py": (
        ("from weft.kinds.token import TOKEN\n", "from weft.kinds.toy import TOY\n"),
        ("    TOKEN,\n", "    TOY,\n"),
    ),
    "controllers/registry.py": (
        ("from weft.controllers.node.drain_controller import Drain\n", "from weft.controllers.toy import Toys\n"),
        ("    Registered(lambda *_: Networks()),\n", "    Registered(lambda *_: Toys()),\n"),
    ),
}

PLAY = """
import asyncio, contextlib, io, os, pathlib, sys, tempfile

import weft.kinds.toy
from tests.scenario.api_lab import ApiLab
from weft.cli.app import run
from weft.contracts.clock import SystemClock
from weft.controllers.registry import Needs
from weft.launch.server.controllers import decide


def weft(*words):
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        code = run(words, SystemClock)
    assert code == 0, (words, code, error.getvalue())
    return out.getvalue()


def complete(*words):
    asked = {"_WEFT_COMPLETE": "bash_complete", "COMP_WORDS": " ".join(["weft", *words]), "COMP_CWORD": str(len(words))}
    os.environ |= asked
    try:
        out = io.TextIOWrapper(io.BytesIO())
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            run((), SystemClock)
        out.flush()
        return [line.partition(",")[2].partition(",")[0] for line in out.buffer.getvalue().decode().splitlines()]
    finally:
        for name in asked:
            del os.environ[name]


with tempfile.TemporaryDirectory() as folder:
    os.environ |= {"HOME": folder, "XDG_CACHE_HOME": folder}
    place = pathlib.Path(folder)
    lab = ApiLab(place)
    os.environ["WEFT_CONTEXT"] = str(lab.context_path)
    deciding = asyncio.run_coroutine_threadsafe(
        decide(lab.store, lab.journal, lab.clock, Needs(images=place / "images"), holder="test", strategy="least-loaded"),
        lab.loop,
    )
    try:
        # The controller writes the status, which the command waits for; it finds the others by the index.
        assert weft("toy", "create", "top", "--colour", "red").splitlines()[-1].startswith("toy/top  Resting")
        weft("toy", "create", "bear", "--colour", "brown")
        assert weft("toy", "create", "kite", "--colour", "red").splitlines()[-1].startswith("toy/kite  Resting")
        assert lab.client.get("toy", "kite")["status"]["playmates"] == ["top"]
        assert weft("toy", "wind", "top").splitlines()[-1].startswith("toy/top  Playing")
        assert lab.client.get("toy", "top")["spec"] == {"colour": "red", "wound": True}
        weft("wait", "toy/top", "--for", "phase=Playing")
        rows = [line.split() for line in weft("toys", "list").splitlines()]
        assert rows == [
            ["NAME", "COLOUR", "PHASE"], ["bear", "brown", "Resting"], ["kite", "red", "Resting"], ["top", "red", "Playing"],
        ], rows
        assert "Its colour" in weft("schema", "toy.spec")
        assert "playmates" in weft("toy", "get", "kite", "-o", "yaml")
        assert complete("describe", "toy/k") == ["toy/kite"], complete("describe", "toy/k")
        assert complete("toy", "wi") == ["wind"], complete("toy", "wi")
        paths = lab.client.http.request("GET", "/v1/openapi.json").json()["paths"]
        assert "/v1/projects/{project}/toys/{name}:wind" in paths
        weft("delete", "toy/top", "toy/kite", "toy/bear", "--yes")
        assert not lab.client.list("toy").items
    finally:
        deciding.cancel()
        lab.close()
"""


def copy_source(to: Path) -> None:
    """The source as links; folders that get a file are folders of their own."""
    to.mkdir(parents=True)
    for path in SOURCE.iterdir():
        if path.name in ("kinds", "controllers"):
            (to / path.name).mkdir()
            for inner in path.iterdir():
                (to / path.name / inner.name).symlink_to(inner)
        else:
            (to / path.name).symlink_to(path)


def add_entries(weft: Path) -> None:
    for name, entries in ENTRIES.items():
        text = (SOURCE / name).read_text()
        for before, line in entries:
            assert text.count(before) == 1, (name, before)
            text = text.replace(before, before + line)
        (weft / name).unlink()
        (weft / name).write_text(text)


def test_a_kind_that_behaves_is_two_files_and_two_entries(tmp_path: Path) -> None:
    copy_source(tmp_path / "weft")
    add_entries(tmp_path / "weft")
    (tmp_path / "weft/kinds/toy.py").write_text(KIND)
    (tmp_path / "weft/controllers/toy.py").write_text(CONTROLLER)
    environ = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PLAY],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]


def test_the_copy_is_what_runs_and_without_its_entry_nobody_knows_the_kind(tmp_path: Path) -> None:
    copy_source(tmp_path / "weft")
    (tmp_path / "weft/kinds/toy.py").write_text(KIND)
    program = "import weft.kinds.toy; from weft.kinds.registry import BY_NAME; print('toy' in BY_NAME)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "False\n"
