"""Questions that the scheduler answers: weft creates an object with the question, waits for the answer in it, and deletes it."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Mapping
from typing import Any

from weft.cli.session import Session
from weft.kinds.fields.cells import dig
from weft.kinds.registry import BY_NAME
from weft.objects.errors import Forbidden, NotFound, WeftError

Object = Mapping[str, Any]
PATIENCE_SECONDS = 30.0


# Reports tell of the workloads of all projects: what was requested, and what those can run who have rights in some projects.
_OF_ALL = {
    "capacity": (
        "see the capacity of the fabric",
        "weft queue shows what waits in your project, weft quota show its quota",
    ),
    "drain": ("preview a drain", "weft vm list -A --field status.node=NODE lists your own VMs there"),
    "fairness": ("see the shares of all projects", "weft queue shows what waits in your project"),
    "queue": ("see the queue of all projects", "without -A it shows that of your project"),
}


def _refuse_of_all(refused: Forbidden, act: str, instead: str) -> Forbidden:
    """The refusal in the words of the command: nobody asked for a report."""
    message = refused.message.replace("create a report", act)
    return Forbidden(message, hint=f"{refused.hint}; {instead}", details=refused.details)


def ask(session: Session, kind: str, spec: Mapping[str, Any], *, keep: bool = False) -> Object:
    """The object of ``kind`` with its answer; unless ``keep``, it is deleted then. Raises TimedOut if no scheduler answers, and
    NotFound if the object was deleted."""
    name = f"asked-{secrets.token_hex(4)}"
    try:
        session.client.create({"kind": kind, "name": name, "spec": dict(spec)})
    except Forbidden as refused:
        if BY_NAME[kind].scope == "fabric" and (words := _OF_ALL.get(str(spec.get("subject")))):
            raise _refuse_of_all(refused, *words) from None
        raise
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
