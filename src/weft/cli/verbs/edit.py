"""`weft vm edit web`: the object in $EDITOR; what is saved is applied if nobody changed it meanwhile. If the text can't be
applied, the editor opens again with the reason on top; without a terminal that is an error."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from weft.cli.command import options
from weft.cli.command.exit_codes import OK
from weft.cli.command.grammar import Entry
from weft.cli.command.lookup import find_one
from weft.cli.command.target import Target, usage
from weft.cli.manifest.check import WrittenManifest, locate, raise_all, read_manifests
from weft.cli.manifest.yaml_text import read_yaml
from weft.cli.output.formats import write_manifest
from weft.cli.output.terminal import is_terminal
from weft.cli.session import Session
from weft.cli.wait.finish import Done, finish, plan_wait
from weft.kinds.record import Kind
from weft.objects.errors import InvalidInput, StaleRevision, WeftError


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params = [options.targets(kind, many=False, able=entry.kinds), *options.waits(), options.output()]
    return options.build(verb, "Edit an object in $EDITOR.", _run, kind, params)


def _run(session: Session, kind: Kind | None, words: tuple[str, ...]) -> int:
    target = find_one(session, kind, words, (), "give one object: objects are edited one at a time")
    chosen = session.environ.get("VISUAL") or session.environ.get("EDITOR")
    if session.recorder is None and not chosen and not (is_terminal(sys.stdin) and is_terminal(sys.stdout)):
        raise usage(
            "no terminal for an editor: use one, or set EDITOR to a program that needs none",
            f"weft get {target.what} -o manifest >FILE, then weft apply FILE",
        )
    obj = session.client.get(target.kind.name, target.name)
    before = write_manifest(obj)
    text, complaint = before, ""
    while True:
        edited = open_editor(session, target, text, complaint)
        if not _strip(edited) or _strip(edited) == _strip(before):
            session.notify(f"{target.what}  not changed")
            return OK
        try:
            changed = _save(session, target, edited, obj)
        except WeftError as problem:
            if not is_terminal(sys.stdin) or (edited == text and complaint):
                raise _keep(problem, edited) from None  # nobody corrects the text: it would be refused for ever
            text, complaint = edited, "\n".join(part for part in (problem.message, problem.hint) if part)
            if isinstance(problem, StaleRevision):
                obj = session.client.get(target.kind.name, target.name)
                complaint += "\nSaving again overwrites the newer object."
            continue
        wait = plan_wait(changed, target, "update")
        unchanged = changed.get("generation") == obj.get("generation")
        return finish(session, [Done(target, changed, "update", "changed")], [wait] if wait and not unchanged else [])


def open_editor(session: Session, target: Target, text: str, complaint: str) -> str:
    """Return what the person made of ``text``. Raises InvalidInput when the editor can't be run or fails."""
    session.would(f"open $EDITOR with {target.what}; what is saved is PUT")
    editor = session.environ.get("VISUAL") or session.environ.get("EDITOR") or "vi"
    head = f"# {target.what}: save to apply, close without changes to cancel.\n"
    head += "".join(f"# error: {line}\n" for line in complaint.splitlines())
    with tempfile.NamedTemporaryFile("w", prefix=f"weft-{target.name}-", suffix=".yaml", delete=False) as file:
        file.write(head + text)
    try:
        code = subprocess.run([*shlex.split(editor), file.name], check=False).returncode
        if code != 0:
            raise InvalidInput(f"the editor {editor!r} exited with {code}; nothing was changed")
        lines = Path(file.name).read_text().splitlines(keepends=True)
    except FileNotFoundError:
        raise InvalidInput(f"the editor {editor!r} was not found", hint="export EDITOR=…") from None
    finally:
        os.unlink(file.name)
    own = set(head.splitlines(keepends=True))
    return "".join(line for line in lines if line not in own)


def _save(session: Session, target: Target, text: str, obj: dict[str, Any]) -> dict[str, Any]:
    manifests = read_manifests(read_yaml(text, target.what), session.project)
    if len(manifests) != 1:
        raise InvalidInput(f"expected one object, found {len(manifests)}")
    manifest = manifests[0]
    if (manifest.kind.name, manifest.data["name"]) != (target.kind.name, target.name):
        raise_all([locate(manifest, InvalidInput("kind and name can't be changed", field="name"))])
    data = {"labels": {}, **manifest.data, "generation": obj["generation"]}
    try:
        return session.client.put(data)
    except WeftError as problem:
        raise _with_place(manifest, problem) from None


def _with_place(manifest: WrittenManifest, problem: WeftError) -> WeftError:
    return locate(manifest, problem) if problem.field else problem


def _strip(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if line.strip() and not line.startswith("#"))


def _keep(problem: WeftError, text: str) -> WeftError:
    with tempfile.NamedTemporaryFile("w", prefix="weft-edit-", suffix=".yaml", delete=False) as file:
        file.write(text)
    print(f"your text is kept in {file.name}", file=sys.stderr)
    return problem
