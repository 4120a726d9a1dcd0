"""`weft fabric rotate seal`: a new key for what the fabric keeps sealed, without a pause; `status` shows how far it is. Interrupted
or detached, it goes on."""

from __future__ import annotations

import sys
from typing import Any

from weft.cli.command.exit_codes import INTERRUPTED, OK
from weft.cli.command.target import usage
from weft.cli.output.formats import print_data, print_items
from weft.cli.output.local_time import localize
from weft.cli.output.table import make_columns
from weft.cli.session import Session
from weft.client.answer import raise_problem
from weft.objects.errors import TimedOut, Unavailable
from weft.objects.quantity import format_age
from weft.protocol.server.rotation import PARTS, PATH

_EXAMPLE = "weft fabric rotate seal"
_TITLES = ("PART!", "STEP", "KEY", "BEGUN", "BY", "RESEALED>", "WAITS FOR~")
_EVERY_SECONDS = 1.0
STATUS = "status"


def rotate(session: Session, part: str | None) -> int | None:
    """Begin the rotation of ``part`` and wait for its end; or show all. Raises WeftError, UsageError."""
    if part == STATUS:
        _show(session, list_rotations(session))
        return None
    if part not in PARTS:
        said = "rotate takes what rotates" if part is None else f"{part!r} doesn't rotate"
        raise usage(f"{said}: {', '.join(PARTS)}; or status", _EXAMPLE)
    answer = session.client.http.request("POST", PATH, {"part": part})
    raise_problem(answer)
    begun = dict(answer.json())
    if session.detach:
        return _finish(session, begun)
    return _follow(session, begun)


def list_rotations(session: Session) -> list[dict[str, Any]]:
    """How each part's rotation goes, or went last. Raises WeftError."""
    answer = session.client.http.request("GET", PATH)
    raise_problem(answer)
    return list(answer.json()["items"])


def _follow(session: Session, one: dict[str, Any]) -> int:
    session.unfinished = True
    until, said = session.clock.elapsed() + session.wait_seconds, ""
    try:
        while one["step"] != "done":
            waits = f"; waits for {', '.join(one['waits_for'])}" if one["waits_for"] else ""
            line = f"{one['part']}: {one['meaning']}{waits}"
            if line != said and not session.is_data:
                print(line, file=sys.stderr, flush=True)
            said = line
            if session.clock.elapsed() >= until:
                raise TimedOut(
                    f"the rotation hasn't ended: {line}",
                    hint="it goes on: weft fabric rotate status shows how far it is",
                )
            if not session.rests(_EVERY_SECONDS):
                return INTERRUPTED
            try:
                one = next(found for found in list_rotations(session) if found["part"] == one["part"])
            except Unavailable as problem:
                line = f"{problem.message}; trying again"
                if line != said and not session.is_data:
                    print(line, file=sys.stderr, flush=True)
                said = line
    except KeyboardInterrupt:
        session.notify("the rotation goes on: weft fabric rotate status shows how far it is")
        return INTERRUPTED
    session.unfinished = False
    return _finish(session, one)


def _finish(session: Session, one: dict[str, Any]) -> int:
    if session.is_document:
        print_data(session, one)
    elif one["step"] == "done":
        print(
            f"{one['part']}  rotated: key {one['key']}, {one['resealed']} object{'s' if one['resealed'] != 1 else ''} sealed again"
        )
        if one["unopened"]:
            session.notify(f"no key opens values of {', '.join(one['unopened'])}: enter them again")
    else:
        print(f"{one['part']}  rotation requested; weft fabric rotate status shows how far it is")
    return OK


def _show(session: Session, items: list[dict[str, Any]]) -> None:
    rows = []
    for one in items:
        ago = f"{format_age(session.clock.now() - one['begun_at'])} ago" if one["begun_at"] else "–"
        notes = [*one["waits_for"], *(f"{name}: it doesn't have the key" for name in one["lacking"])]
        resealed = str(one["resealed"]) if one["step"] else "–"
        rows.append(
            [
                one["part"],
                one["step"] or "never",
                one["key"],
                ago,
                one["by"] or "–",
                resealed,
                localize(", ".join(notes)),
            ]
        )
    print_items(session, items, [one["part"] for one in items], (make_columns(*_TITLES), rows), "nothing rotates")
