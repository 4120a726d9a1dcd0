"""Secret: values that containers need and nobody can read back, like a registry's password. They arrive as ``values``, are sealed
in the store, and are opened only for a node that runs a workload which names them."""

from __future__ import annotations

import re
from typing import Annotated

import msgspec

from weft.kinds.fields.cells import AGE, NAME, dig, text
from weft.kinds.parts.snapshot.backed_up import SealedElsewhere
from weft.kinds.record import Access, Admission, Column, Display, Kind, Object
from weft.objects.errors import InvalidInput
from weft.objects.image.reference import parse_reference
from weft.objects.schema import field

MOST_BYTES = 64 * 1024
MOST_KEYS = 64
USERNAME, PASSWORD, TOKEN = "username", "password", "token"
_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}")


class SealedSpec(msgspec.Struct, kw_only=True):
    """A spec with values that nobody can read back: they are sealed on their way in (``Admission.seals``)."""

    values: Annotated[dict[str, str], field("Values by key; accepted, and never shown again")] = {}
    sealed: Annotated[dict[str, str], field("Encrypted values, which only the server reads; set by the server")] = {}


class SecretSpec(SealedSpec, kw_only=True):
    from_backup: Annotated[
        SealedElsewhere | None, field("Values from a backup of a project; accepted, and never shown again")
    ] = None
    registry: Annotated[
        str,
        field(
            "Image registry of these credentials: HOST[:PORT]; the values are username and password, or token",
            max_length=255,
        ),
    ] = ""
    offline: Annotated[
        bool,
        field(
            "Keep it, sealed, on the disks of nodes with containers that name it, so that these start again while the server can't "
            "be reached"
        ),
    ] = False


class SecretStatus(msgspec.Struct, kw_only=True):
    pass


def check_secret(spec: SecretSpec) -> None:
    """Checks its keys and the registry's name, not its values. Raises InvalidInput, which never contains a value."""
    check_values(spec)
    if spec.registry:
        _check_registry(spec)


def check_values(spec: SealedSpec) -> None:
    """Checks keys and sizes. Raises InvalidInput, which never contains a value."""
    for key in (*spec.values, *spec.sealed):
        if not _KEY.fullmatch(key):
            raise InvalidInput(
                f"spec.values: {key[:60]!r} is not a valid key",
                field="spec.values",
                hint="letters, digits, dots, dashes and underscores, 63 at most",
            )
    if len({*spec.values, *spec.sealed}) > MOST_KEYS:
        raise InvalidInput(f"spec.values: at most {MOST_KEYS} keys", field="spec.values")
    if sum(len(value.encode()) for value in spec.values.values()) > MOST_BYTES:
        raise InvalidInput("spec.values: larger than 64 KiB in all", field="spec.values", hint="give at most 64 KiB")


def _check_registry(spec: SecretSpec) -> None:
    try:
        good = parse_reference(f"{spec.registry}/name:tag").registry == spec.registry and "/" not in spec.registry
    except InvalidInput:
        good = False
    if not good:
        raise InvalidInput(
            f"spec.registry: {spec.registry[:80]!r} is not a registry",
            field="spec.registry",
            hint="write HOST or HOST:PORT, as in an image's name: registry.example.org:5000",
        )
    keys = {*spec.values, *spec.sealed}
    if TOKEN not in keys and not {USERNAME, PASSWORD} <= keys:
        raise InvalidInput(
            f"a secret for registry {spec.registry} needs username and password, or token",
            field="spec.values",
            hint=f"weft secret create NAME --registry {spec.registry} --username NAME --password-stdin",
        )


def place_of(project: str | None, name: str, key: str, kind: str = "secret") -> str:
    """Place that a value is sealed for: it can't be opened for anything else."""
    return f"{kind}/{project}/{name}/{key}"


def list_keys(obj: Object) -> str:
    return ",".join(sorted(dig(obj, "spec.sealed") or {})) or "–"


SECRET = Kind(
    name="secret",
    plural="secrets",
    title="secret",
    summary="Confidential values for workloads and image registries",
    spec=SecretSpec,
    status=SecretStatus,
    in_backups="kept",
    access=Access(readers="project", status_writer="api"),
    admission=Admission(check=check_secret, kept_fields=("sealed",), seals=True),
    display=Display(
        topic="People and projects",
        columns=(
            NAME,
            Column("KEYS", list_keys, flexible=True),
            Column("REGISTRY", text("spec.registry", "–")),
            AGE,
        ),
    ),
)
