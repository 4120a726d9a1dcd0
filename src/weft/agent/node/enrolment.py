"""Joins a machine to the fabric: checks the server's CA against a digest, makes a key, gets a certificate for it.

The token is sent only over a connection that the checked CA authenticates. Reads and writes the node's state folder:
``node.key`` (0600), ``node.crt``, ``ca.crt``, ``node.json``. An interrupted join may be repeated: the key stays.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from weft import __version__
from weft.client.answer import raise_problem
from weft.client.context import Context
from weft.client.http import Http
from weft.client.tls import fetch_ca
from weft.contracts.durable_file import write_durably
from weft.objects.errors import AlreadyExists, DriverFailed, InvalidInput, NotAuthenticated, NotFound, WeftError
from weft.objects.identity import SERVER_NAME, check_name
from weft.protocol.report import JoinAnswer, JoinInput, RenewInput

FILE = "node.json"
OPENSSL_SECONDS = 30
_WRITING = threading.Lock()

log = logging.getLogger("weft.agent")
RENEW_DAYS = 30


class Enrolment(msgspec.Struct, frozen=True):
    """The node that a state folder belongs to."""

    server: str
    gateway: str
    node: str
    node_uid: str
    address: str = ""  # its underlay address, if the join named one
    others: tuple[str, ...] = ()  # URLs of further servers
    gateways: tuple[str, ...] = ()  # HOST:PORT of those that servers named, beside ``gateway``


def read_enrolment(state_dir: Path) -> Enrolment:
    """The enrolment in ``state_dir``. Raises NotFound before a join, InvalidInput for a file that can't be read."""
    path = state_dir / FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Enrolment)
    except FileNotFoundError:
        raise NotFound(
            f"{state_dir} belongs to no node yet",
            reason="notJoined",
            hint="weft token create --join prints the command that joins this machine",
        ) from None
    except (OSError, msgspec.MsgspecError) as problem:
        raise InvalidInput(f"{path} can't be read: {problem}") from problem


def list_joined(folder: Path) -> list[str]:
    """The nodes that have joined in folders of their names below ``folder``."""
    return sorted(file.parent.name for file in folder.glob(f"*/{FILE}"))


def make_context(state_dir: Path, enrolment: Enrolment) -> Context:
    """The client context with which this node calls its server."""
    return Context(
        server=enrolment.server,
        ca=(state_dir / "ca.crt").read_text(),
        certificate=str(state_dir / "node.crt"),
        key=str(state_dir / "node.key"),
        server_name=SERVER_NAME,
        others=list(enrolment.others),
    )


def keep_servers(state_dir: Path, others: Iterable[str]) -> None:
    """Write the fabric's further servers down, for when the first one doesn't answer."""
    _keep(state_dir, others=tuple(others))


def keep_gateways(state_dir: Path, gateways: Iterable[str]) -> None:
    """Write the fabric's gateways down, likewise."""
    _keep(state_dir, gateways=tuple(gateways))


def _keep(state_dir: Path, **places: tuple[str, ...]) -> None:
    try:
        with _WRITING:  # answers come in threads
            enrolment = msgspec.structs.replace(read_enrolment(state_dir), **places)
            write_durably(state_dir / FILE, msgspec.json.encode(enrolment))
    except (OSError, WeftError) as problem:  # the agent goes on by what it knows
        log.warning("where the fabric's servers are can't be kept: %s", problem)


def join(state_dir: Path, server: str, token: str, ca_sha256: str, node: str, address: str = "") -> Enrolment:
    """Make this machine the node ``node`` of the fabric at ``server``, or do nothing if it is that already with a valid
    certificate.

    Raises NotAuthenticated for a wrong digest or token, AlreadyExists when the name is taken or the folder is another
    node's, Unavailable when no server answers.
    """
    check_name(node, "node")
    present = _find_enrolment(state_dir)
    if present is not None and present.node != node:
        raise AlreadyExists(
            f"{state_dir} belongs to node {present.node} already; it can't join as {node}",
            field="node",
            hint=f"use another --state, or start it: weft agent {present.node} --state {state_dir}",
        )
    if present is not None and _is_valid(state_dir, present):
        return present
    ca = fetch_ca(server, ca_sha256)
    with _hold(state_dir):
        # An earlier join may have outlived its caller and ended only now.
        present = _find_enrolment(state_dir)
        if present is not None and _is_valid(state_dir, present):
            return present
        return _join(state_dir, server, ca, token, node, address)


def _is_valid(state_dir: Path, enrolment: Enrolment) -> bool:
    """Whether the node's certificate is valid: it can be read, hasn't expired, and the server, if it answers, doesn't refuse it
    because the node was removed, or enrolled anew elsewhere."""
    if has_ended(state_dir):
        return False
    try:
        http = Http(make_context(state_dir, enrolment))
    except (WeftError, OSError):
        return False
    try:
        return http.request("GET", f"/v1/nodes/{enrolment.node}").status not in (401, 403)
    except WeftError:
        return True
    finally:
        http.close()


def _join(state_dir: Path, server: str, ca: str, token: str, node: str, address: str) -> Enrolment:
    key = state_dir / "node.key"
    is_new = not key.exists()
    csr = _make_request(key)
    http = Http(Context(server=server, ca=ca, token=token, server_name=SERVER_NAME))
    try:
        answer = http.request("POST", "/v1/join", JoinInput(node, csr, __version__))
    finally:
        http.close()
    try:
        raise_problem(answer)
    except WeftError as problem:
        if is_new:
            key.unlink()
        if isinstance(problem, NotAuthenticated):  # an unknown token doesn't say what it was for
            problem.hint = "weft token create --join makes another token"
        raise
    given = msgspec.json.decode(answer.body, type=JoinAnswer)
    write_durably(state_dir / "ca.crt", ca.encode(), 0o644)
    write_durably(state_dir / "node.crt", given.certificate.encode(), 0o644)
    enrolment = Enrolment(server.rstrip("/"), given.gateway, node, given.node_uid, address)
    write_durably(state_dir / FILE, msgspec.json.encode(enrolment))
    return enrolment


@contextmanager
def _hold(state_dir: Path) -> Iterator[None]:
    """One join at a time for a state folder: two would mix a key of one with a certificate of the other. One that fails leaves no
    folder behind that it has made, unless its key is in it."""
    is_new = not state_dir.exists()
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = state_dir / "join.lock"
    was_locked = lock.exists()
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    except BaseException:
        if not was_locked:
            lock.unlink(missing_ok=True)
        if is_new:
            with suppress(OSError):  # its key may be there: the join goes on with it
                state_dir.rmdir()
        raise
    finally:
        os.close(descriptor)


def needs_renewal(state_dir: Path) -> bool:
    """Whether the node's certificate ends within RENEW_DAYS, or was made by an older weft: no other node accepts that for
    migrations."""
    return has_ended(state_dir, RENEW_DAYS * 86400) or not _is_server(state_dir)


def has_ended(state_dir: Path, in_seconds: int = 0) -> bool:
    """Whether, by this machine's clock, the node's certificate has expired, or will have ``in_seconds`` from now."""
    words = ("x509", "-noout", "-checkend", str(in_seconds), "-in", str(state_dir / "node.crt"))
    return _call_openssl(*words).returncode != 0


def _is_server(state_dir: Path) -> bool:
    words = ("verify", "-no_check_time", "-purpose", "sslserver", "-CAfile", str(state_dir / "ca.crt"))
    return _call_openssl(*words, str(state_dir / "node.crt")).returncode == 0


def renew(state_dir: Path, node: str, context: Context) -> None:
    """Get a new certificate for the node's key. Raises the server's error, Unavailable when no server answers."""
    http = Http(context)
    try:
        csr = _make_request(state_dir / "node.key")
        answer = http.request("POST", f"/v1/nodes/{node}:renew", RenewInput(csr))
    finally:
        http.close()
    raise_problem(answer)
    given = msgspec.json.decode(answer.body, type=JoinAnswer)
    write_durably(state_dir / "node.crt", given.certificate.encode(), 0o644)


def default_node_name() -> str:
    """A valid node name made from this machine's host name."""
    name = "".join(c if c.isalnum() and c.isascii() else "-" for c in socket.gethostname().split(".")[0].lower())
    return name.strip("-")[:63].strip("-") or "node"


def _find_enrolment(state_dir: Path) -> Enrolment | None:
    try:
        return read_enrolment(state_dir)
    except NotFound:
        return None


def _make_request(key: Path) -> str:
    """A signing request (PEM) for the key in file ``key``, which is made if it is missing. Made by openssl, because a cryptography
    library would stay in the agent's memory."""
    if not key.exists():
        write_durably(key, _openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"))
    return _openssl("req", "-new", "-key", str(key), "-subj", "/CN=node", "-config", os.devnull).decode()


def _call_openssl(*words: str) -> subprocess.CompletedProcess[bytes]:
    program = shutil.which("openssl")
    if program is None:
        raise DriverFailed("openssl is not installed", hint="apt-get install openssl")
    return subprocess.run(
        [program, *words], stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=OPENSSL_SECONDS
    )


def _openssl(*words: str) -> bytes:
    done = _call_openssl(*words)
    if done.returncode != 0:
        raise DriverFailed(f"openssl {words[0]} failed: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout
