"""The context of a client: the fabric's server, and the client's credentials.

Reads a context file (JSON, mode 0600), or the environment; `make up` and `weft agent join` write such files.
"""

from __future__ import annotations

import hashlib
import os
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from weft.client.small_file import read_small
from weft.objects.errors import AlreadyExists, InvalidInput, NotFound

FOLDER = ".weft"
FILE = "context.json"
CONFIG = "config.json"
NAMED = "contexts"
LOOPBACK = (
    "https://127.",
    "https://localhost",
    "https://[::1]",
)  # how the addresses begin that only this machine reaches


class Context(msgspec.Struct, kw_only=True, omit_defaults=True):
    """``server`` is an https URL, ``others`` are those of further servers of the fabric, and ``ca`` is PEM text. Either ``token``
    or ``certificate`` and ``key`` (paths of PEM files) are the credentials. ``server_name`` is the name in the server's
    certificate, where it isn't the URL's host."""

    server: str
    ca: str = ""
    token: str = ""
    project: str = "default"
    certificate: str = ""
    key: str = ""
    server_name: str = ""
    others: list[str] = []


class Settings(msgspec.Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A project's or a user's config.json: the context, project and output form unless something else sets them."""

    context: str = ""
    project: str = ""
    output: str = ""


class Setting(NamedTuple):
    """A value in force, and where it comes from."""

    value: str
    origin: str


class FoundContext(NamedTuple):
    """The context in force, its file, and what chose it."""

    context: Context
    place: str
    origin: str


def find_context(given: str | None = None, environ: Mapping[str, str] = os.environ, folder: str = ".") -> Context:
    """The context that ``given`` names (a file, or one of the user's by name), else WEFT_CONTEXT, else WEFT_SERVER with
    WEFT_TOKEN and WEFT_CA, else the nearest ``.weft`` from ``folder`` upwards, else the user's own. WEFT_TOKEN overrides the
    token in a file, but not a context that is given.

    Raises NotFound with the next command when there is none, InvalidInput when one can't be read."""
    return locate_context(given, environ, folder).context


def locate_context(
    given: str | None = None, environ: Mapping[str, str] = os.environ, folder: str = "."
) -> FoundContext:
    """Find a context like ``find_context``, with where it was found."""
    if given:
        if "://" in given:
            raise InvalidInput(
                f"--context {given[:80]}: a context is a file or a name, not an address",
                field="context",
                hint="weft login --server https://ADDRESS:PORT --user NAME writes one; weft context list shows those there are",
            )
        path = place_of(given, environ)
        return FoundContext(read_context(path), str(path), "--context")
    if environ.get("WEFT_CONTEXT"):
        path = place_of(environ["WEFT_CONTEXT"], environ)
        return FoundContext(_with_token(read_context(path), environ), str(path), "WEFT_CONTEXT")
    if environ.get("WEFT_SERVER"):
        return FoundContext(_from_environment(environ), "the environment", "WEFT_SERVER")
    for place in _list_folders(environ, folder):
        named = read_settings(place / CONFIG).context
        path = place_of(named, environ) if named else place / FILE
        if named or path.is_file():
            return FoundContext(
                _with_token(read_context(path), environ), str(path), str(place / CONFIG if named else path)
            )
    raise NotFound(
        "no weft context found, so the server and the credentials are unknown",
        reason="noContext",
        hint="run make up, or give --context NAME or FILE (weft context list)"
        if is_in_clone(folder)
        else "weft login --server https://ADDRESS:PORT --user NAME, or give --context NAME or FILE (weft context list)",
    )


def find_setting(name: str, environ: Mapping[str, str] = os.environ, folder: str = ".") -> Setting:
    """The value of ``project`` or ``output`` that is in force beside flags: WEFT_PROJECT or WEFT_OUTPUT, else the nearest
    ``.weft/config.json``, else the user's; empty if none sets it. Raises InvalidInput."""
    variable = f"WEFT_{name.upper()}"
    if environ.get(variable):
        return Setting(environ[variable], variable)
    for place in _list_folders(environ, folder):
        if value := getattr(read_settings(place / CONFIG), name):
            return Setting(str(value), str(place / CONFIG))
    return Setting("", "")


def is_in_clone(folder: str = ".") -> bool:
    """Whether ``folder`` lies in a clone of weft, where make up starts a cluster."""
    here = Path(folder).absolute()
    return any((one / "src" / "weft").is_dir() for one in (here, *here.parents))


def user_folder(environ: Mapping[str, str]) -> Path:
    """The folder of the user's own contexts and settings."""
    return Path(environ.get("XDG_CONFIG_HOME") or Path(environ.get("HOME") or "/root") / ".config") / "weft"


def place_of(given: str, environ: Mapping[str, str]) -> Path:
    """The file of a context that is given by path or by name; a file of this folder with a context's name is given as ./NAME."""
    if "/" in given or given.endswith(".json"):
        return Path(given)
    if _find_named(given, environ) is None and Path(given).is_file():
        return Path(given)
    return place_of_named(given, environ)


def place_of_named(name: str, environ: Mapping[str, str]) -> Path:
    """The file of the context of that name, even if another file has this name. Raises NotFound (noContext)."""
    path = _find_named(name, environ)
    if path is None:
        known = list_named(environ)
        raise NotFound(
            f"there is no context {name!r}",
            reason="noContext",
            hint=f"contexts: {', '.join(known)}" if known else "weft context add NAME FILE adds one",
        )
    return path


def _find_named(name: str, environ: Mapping[str, str]) -> Path | None:
    """Path of the named context of the nearest ``.weft``, from here upwards, else the user's."""
    places = (place / NAMED / f"{name}.json" for place in _list_folders(environ, "."))
    return next((path for path in places if path.is_file()), None)


def list_named(environ: Mapping[str, str]) -> list[str]:
    """The names of the user's contexts, and of those beside the project's own."""
    return sorted({path.stem for place in _list_folders(environ, ".") for path in (place / NAMED).glob("*.json")})


def read_settings(path: Path) -> Settings:
    """The settings in ``path``; none if it doesn't exist. Raises InvalidInput."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Settings)
    except (FileNotFoundError, NotADirectoryError):
        return Settings()
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as problem:
        raise InvalidInput(
            f"{path} can't be read: {problem}",
            hint='write it like {"context": "prod", "project": "lab", "output": "wide"}',
        ) from problem


def write_settings(path: Path, settings: Settings) -> None:
    _write(path, msgspec.json.format(msgspec.json.encode(settings), indent=2) + b"\n")


def _list_folders(environ: Mapping[str, str], folder: str) -> Iterator[Path]:
    here = Path(folder).absolute()
    yield from (place / FOLDER for place in (here, *here.parents))
    yield user_folder(environ)


def read_context(path: Path) -> Context:
    """The context in ``path``. Raises NotFound, or InvalidInput if it is no context file."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Context)
    except FileNotFoundError:
        raise NotFound(
            f"context file {path} does not exist",
            reason="noContext",
            hint="weft context list shows those that have a name; weft login writes one",
        ) from None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as problem:
        raise InvalidInput(
            f"context file {path} can't be read: {problem}", hint="weft login writes a new one"
        ) from problem


def write_context(path: Path, context: Context) -> None:
    """Write ``context`` to ``path`` whole, readable by its owner only."""
    _write(path, msgspec.json.format(msgspec.json.encode(context), indent=2) + b"\n")


def refuse_other_server(path: Path, context: Context, hint: str) -> None:
    """Raises AlreadyExists where ``path`` holds the context of another server than ``context``, or anything else: it would be
    lost. Two addresses with one CA are one fabric's."""
    try:
        old = read_context(path)
    except NotFound:
        return
    except InvalidInput:
        if path.is_file() and not path.stat().st_size:
            return
        raise AlreadyExists(f"{path} exists, and is not a context", hint=hint) from None
    if old.server.rstrip("/") != context.server.rstrip("/") and not (old.ca and old.ca.strip() == context.ca.strip()):
        raise AlreadyExists(f"{path} is the context of another server, {old.server}", hint=hint)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as out:
        out.write(content)
    fresh.replace(path)


def hash_ca(ca: str) -> str:
    """SHA-256 of a CA certificate (PEM text), 64 hex digits: a joining node checks the server's against it."""
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(ca)).hexdigest()


def _with_token(context: Context, environ: Mapping[str, str]) -> Context:
    return msgspec.structs.replace(context, token=environ.get("WEFT_TOKEN") or context.token)


def _from_environment(environ: Mapping[str, str]) -> Context:
    ca = environ.get("WEFT_CA", "")
    if ca and not ca.startswith("-----BEGIN"):
        try:
            ca = read_small(Path(ca))
        except OSError as problem:
            raise InvalidInput(f"WEFT_CA: {ca} can't be read: {problem.strerror}", field="WEFT_CA") from problem
    return Context(
        server=environ["WEFT_SERVER"],
        ca=ca,
        token=environ.get("WEFT_TOKEN", ""),
        project=environ.get("WEFT_PROJECT", "default"),
    )
