"""Where the fabric's server is and who is asking: the context a client is made with.

Reads a context file (JSON, mode 0600), or the environment; `make up` and `weft agent join` write such files.
"""

from __future__ import annotations

import hashlib
import os
import ssl
from collections.abc import Mapping
from pathlib import Path

import msgspec

from weft.objects.errors import InvalidInput, NotFound

FOLDER = ".weft"
FILE = "context.json"


class Context(msgspec.Struct, kw_only=True, omit_defaults=True):
    """``server`` is an https URL and ``ca`` PEM text. Either ``token`` or ``certificate`` and ``key`` (paths of PEM
    files) say who asks. ``server_name`` is the name in the server's certificate, where it isn't the URL's host."""

    server: str
    ca: str = ""
    token: str = ""
    project: str = "default"
    certificate: str = ""
    key: str = ""
    server_name: str = ""


def find_context(file: str | None = None, environ: Mapping[str, str] = os.environ, folder: str = ".") -> Context:
    """The context of ``file``, else of WEFT_CONTEXT, else of WEFT_SERVER with WEFT_TOKEN and WEFT_CA, else of the
    nearest ``.weft/context.json`` from ``folder`` upwards, else of the user's own. WEFT_TOKEN is stronger than the token
    in a file, but not than a ``file`` that is given.

    Raises NotFound with the next command when there is none, InvalidInput when one can't be read."""
    if file:
        return read_context(Path(file))
    if environ.get("WEFT_CONTEXT"):
        return _with_token(read_context(Path(environ["WEFT_CONTEXT"])), environ)
    if environ.get("WEFT_SERVER"):
        return _from_environment(environ)
    here = Path(folder).absolute()
    candidates = [place / FOLDER / FILE for place in (here, *here.parents)]
    candidates.append(Path(environ.get("HOME") or "/root") / ".config" / "weft" / FILE)
    for path in candidates:
        if path.is_file():
            return _with_token(read_context(path), environ)
    raise NotFound(
        "no weft context found: which server to ask, and as whom, is unknown",
        reason="noContext",
        hint="run make up in a clone and stay inside it, or give --context FILE",
    )


def read_context(path: Path) -> Context:
    """The context in ``path``. Raises NotFound, or InvalidInput if it is no context file."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Context)
    except FileNotFoundError:
        raise NotFound(f"context file {path} does not exist", reason="noContext") from None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as problem:
        raise InvalidInput(
            f"context file {path} can't be read: {problem}", hint="make up writes a new one for a local cluster"
        ) from problem


def write_context(path: Path, context: Context) -> None:
    """Write ``context`` to ``path`` whole, readable by its owner only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as out:
        out.write(msgspec.json.format(msgspec.json.encode(context), indent=2) + b"\n")
    fresh.replace(path)


def hash_ca(ca: str) -> str:
    """SHA-256 of a CA certificate (PEM text), 64 hex digits: what a joining node checks the server against."""
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(ca)).hexdigest()


def _with_token(context: Context, environ: Mapping[str, str]) -> Context:
    return msgspec.structs.replace(context, token=environ.get("WEFT_TOKEN") or context.token)


def _from_environment(environ: Mapping[str, str]) -> Context:
    ca = environ.get("WEFT_CA", "")
    if ca and not ca.startswith("-----BEGIN"):
        try:
            ca = Path(ca).read_text()
        except OSError as problem:
            raise InvalidInput(f"WEFT_CA: {ca} can't be read: {problem.strerror}", field="WEFT_CA") from problem
    return Context(
        server=environ["WEFT_SERVER"],
        ca=ca,
        token=environ.get("WEFT_TOKEN", ""),
        project=environ.get("WEFT_PROJECT", "default"),
    )
