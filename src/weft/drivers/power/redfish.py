"""Switches a machine over Redfish (DMTF DSP0266): its PowerState is read, and its action Reset is posted."""

from __future__ import annotations

import base64
import hashlib
import ssl
from typing import Any, TypeVar

import msgspec

from weft.contracts.http.connection import FAILURES, Reply, exchange
from weft.contracts.machine.power import PowerState
from weft.objects.errors import DriverFailed, NotAuthenticated, NotFound, Unavailable, WeftError, describe_failure

SYSTEMS = "/redfish/v1/Systems"
_SECONDS, _MOST_BYTES = 10.0, 1 << 20
_T = TypeVar("_T")
_RESETS = {"on": "On", "off": "ForceOff"}


class _Member(msgspec.Struct, rename={"path": "@odata.id"}):
    path: str


class _Systems(msgspec.Struct, rename={"members": "Members"}):
    members: list[_Member]


class _Reset(msgspec.Struct):
    target: str


class _Actions(msgspec.Struct, rename={"reset": "#ComputerSystem.Reset"}):
    reset: _Reset | None = None


class _System(msgspec.Struct, rename={"power": "PowerState", "actions": "Actions"}):
    power: str | None = None
    actions: _Actions = msgspec.field(default_factory=_Actions)


class Redfish:
    """Implements PowerDriver. ``path`` is that of a system, "": the only one that the BMC has. ``fingerprint`` is the SHA-256 of
    its certificate, in hexadecimal digits; "": its certificate must be for ``host``, from a CA that this machine trusts."""

    def __init__(self, host: str, port: int, path: str, user: str, password: str, fingerprint: str = "") -> None:
        self._host, self._port, self._path, self._fingerprint = host, port, path, fingerprint
        self._access = f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"

    def read(self) -> PowerState:
        match self._read_system().power:
            case "Off":
                return "off"
            case "On" | "PoweringOn" | "PoweringOff" | "Paused":
                return "on"
            case _:
                raise DriverFailed(f"the BMC at {self._place} says neither on nor off")

    def switch(self, to: PowerState) -> None:
        reset = self._read_system().actions.reset
        if reset is None or not _is_path(reset.target):
            raise DriverFailed(f"the BMC at {self._place} can't switch {self._path}: it names no action Reset")
        self._ask(reset.target, {"ResetType": _RESETS[to]})

    @property
    def _place(self) -> str:
        return f"{self._host}:{self._port}"

    def _read_system(self) -> _System:
        if not self._path:
            members = self._read(SYSTEMS, _Systems).members
            if len(members) != 1 or not _is_path(members[0].path):
                raise NotFound(
                    f"the BMC at {self._place} has {len(members)} machines",
                    hint=f"name one: redfish://{self._place}{SYSTEMS}/ID",
                )
            self._path = members[0].path
        return self._read(self._path, _System)

    def _read(self, path: str, kind: type[_T]) -> _T:
        try:
            return msgspec.json.decode(self._ask(path).body, type=kind)
        except (msgspec.MsgspecError, RecursionError):
            raise DriverFailed(f"the BMC at {self._place} answers with something else than Redfish") from None

    def _ask(self, path: str, body: dict[str, str] | None = None) -> Reply:
        headers = {"Authorization": self._access, "Accept": "application/json"}
        sent = None if body is None else msgspec.json.encode(body)
        if sent is not None:
            headers["Content-Type"] = "application/json"
        try:
            reply = exchange(
                "GET" if sent is None else "POST",
                f"https://{self._place}{path}",
                sent,
                headers,
                seconds=_SECONDS,
                most_bytes=_MOST_BYTES,
                tls=_PinnedTls(self._fingerprint) if self._fingerprint else None,
            )
        except ssl.SSLCertVerificationError as problem:
            raise self._explain_distrust(problem) from None
        except FAILURES as problem:
            raise Unavailable(f"no BMC answers at {self._place}: {describe_failure(problem)}") from None
        if reply.status in (401, 403):
            raise NotAuthenticated(
                f"the BMC at {self._place} refuses the user or the password",
                hint="correct user and password in its secret",
            )
        if reply.status == 404:
            raise NotFound(f"the BMC at {self._place} has nothing at {path[:200]}")
        if not 200 <= reply.status < 300:
            raise DriverFailed(f"the BMC at {self._place} answers with HTTP status {reply.status}")
        return reply

    def _explain_distrust(self, problem: ssl.SSLCertVerificationError) -> WeftError:
        if isinstance(problem, _AnotherCertificate):
            return NotAuthenticated(
                f"the BMC at {self._place} has another certificate than its secret says: its fingerprint is {problem.found}",
                hint="if it was renewed, put the new one into the secret",
            )
        hint = "give it a certificate of a CA that the server trusts"
        try:
            seen = ssl.get_server_certificate((self._host, self._port), timeout=_SECONDS)
            found = _format(hashlib.sha256(ssl.PEM_cert_to_DER_cert(seen)).hexdigest())
            hint = f"if the BMC itself shows the fingerprint {found}, put it into the secret as fingerprint"
        except (OSError, ValueError):
            pass
        return NotAuthenticated(f"the certificate of the BMC at {self._place} isn't trusted", hint=hint)


class _AnotherCertificate(ssl.SSLCertVerificationError):
    found = ""


class _PinnedTls(ssl.SSLContext):
    """Trusts the one certificate with a fingerprint, whatever it says of itself: those that BMCs come with name no host."""

    def __new__(cls, fingerprint: str) -> _PinnedTls:
        return super().__new__(cls, ssl.PROTOCOL_TLS_CLIENT)

    def __init__(self, fingerprint: str) -> None:
        self._fingerprint = normalize_fingerprint(fingerprint)
        self.check_hostname = False
        self.verify_mode = ssl.CERT_NONE

    def wrap_socket(self, *args: Any, **more: Any) -> ssl.SSLSocket:
        line = super().wrap_socket(*args, **more)
        found = hashlib.sha256(line.getpeercert(binary_form=True) or b"").hexdigest()
        if found != self._fingerprint:
            line.close()
            problem = _AnotherCertificate("another certificate")
            problem.found = _format(found)
            raise problem
        return line


def _is_path(target: str) -> bool:
    """Whether it is on the same BMC."""
    return target.startswith("/") and not target.startswith("//")


def normalize_fingerprint(written: str) -> str:
    """64 digits in lower case, of AB:CD:… or the like."""
    return written.replace(":", "").strip().lower()


def _format(fingerprint: str) -> str:
    return ":".join(fingerprint[at : at + 2] for at in range(0, len(fingerprint), 2)).upper()
