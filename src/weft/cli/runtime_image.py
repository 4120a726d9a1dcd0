"""The image of a managed runtime's functions, built at its first use if this machine can."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from weft.cli.command.exit_codes import OK
from weft.cli.session import Session
from weft.cli.verbs.image import build_and_add
from weft.kinds.image import OWN
from weft.kinds.parts.function_code import BASES_PROJECT, DEFAULT_RUNTIME, name_base
from weft.kinds.record import Kind
from weft.objects.errors import DriverFailed, Forbidden, NotFound, Unavailable


def has_code(kind: Kind) -> bool:
    """Whether its objects run code that is uploaded, or brought by an image."""
    return kind.admission.uploads is not None and kind.admission.upload_sort == "code"


def provide_bases(session: Session, specs: Sequence[Mapping[str, Any]], check: Callable[[], object]) -> None:
    """Build the images that functions of ``specs`` need and that don't exist yet; first ``check``, which raises if the server would
    refuse the functions. Raises Unavailable with the command to type if the server is another machine, DriverFailed if one can't be
    built."""
    needed = {
        name_base(spec.get("runtime") or DEFAULT_RUNTIME, spec.get("image") or "", spec.get("isolation") or "")
        for spec in specs
    }
    for name in sorted(needed & set(OWN)):
        _provide(session, name, check)


def _provide(session: Session, name: str, check: Callable[[], object]) -> None:
    if any(_is_there(session, name, project) for project in dict.fromkeys((session.client.project, BASES_PROJECT))):
        return
    check()
    if not is_here(session.client.context.server) or os.geteuid():
        raise Unavailable(
            f"the runtime's image {name} doesn't exist yet; it is built on the server's machine, as root",
            reason="baseNotReady",
            hint=f"run there, once: weft image build {name} --project {BASES_PROJECT}",
        )
    session.notify(f"image/{name}  is being built, once for all functions of this runtime")
    if build_and_add(session, name, BASES_PROJECT) != OK:
        raise DriverFailed(
            f"image/{name} could not be built", hint=f"weft image build {name} --project {BASES_PROJECT}"
        )


def _is_there(session: Session, name: str, project: str) -> bool:
    """Whether the image is there, also if one may not see that project's images: the server says then what is missing."""
    try:
        session.client.get("image", name, project=project)
    except Forbidden:
        pass
    except NotFound:
        return False
    return True


def is_here(server: str) -> bool:
    """Whether the server at that URL is this machine: only an address of one's own can be bound."""
    try:
        host = urlsplit(server).hostname or ""
        family, kind, protocol, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.bind((address[0], 0))
    except OSError:
        return False
    return True
