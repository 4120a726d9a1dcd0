"""Questions that the scheduler answers: weft creates an object with the question, waits for the answer in it, and deletes it."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Mapping
from typing import Any

from weft.cli.session import Session
from weft.kinds.fields.cells import dig
from weft.objects.errors import NotFound, WeftError

Object = Mapping[str, Any]
PATIENCE_SECONDS = 30.0


def ask(session: Session, kind: str, spec: Mapping[str, Any], *, keep: bool = False) -> Object:
    """The object of ``kind`` with its answer; unless ``keep``, it is deleted then. Raises TimedOut if no scheduler answers, and
    NotFound if the object was deleted."""
    name = f"asked-{secrets.token_hex(4)}"
    session.client.create({"kind": kind, "name": name, "spec": dict(spec)})
    try:
        answered = session.client.wait(
            kind,
            name,
            lambda obj: obj is None or dig(obj, "status.phase", "Pending") != "Pending",
            timeout_seconds=session.timeout_seconds or PATIENCE_SECONDS,
        )
    finally:
        if not keep:
            with contextlib.suppress(WeftError):
                session.client.delete(kind, name)
    if answered is None:
        raise NotFound(f"{kind}/{name} was deleted before the scheduler answered")
    return answered
