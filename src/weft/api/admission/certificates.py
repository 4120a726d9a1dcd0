"""Certificates of services: a secret that a service names holds one with its key, and both are good. Reads secrets and services."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weft.api.admission.view import View
from weft.api.context import ApiContext
from weft.kinds.record import Kind
from weft.kinds.secret import SECRET, SecretSpec, place_of
from weft.kinds.service import SERVICE, ServiceSpec
from weft.objects.envelope import decode_envelope, decode_part
from weft.objects.errors import InvalidInput
from weft.objects.identity import object_key
from weft.trust.certificate_pair import find_fault

CERTIFICATE, KEY = "tls.crt", "tls.key"
_GIVE = "weft secret create NAME --from-file tls.crt=FILE --from-file tls.key=FILE"


async def check_certificate(
    context: ApiContext, view: View, kind: Kind, project: str | None, name: str, old: Any, new: Any
) -> None:
    """Refuse a service whose secret holds no good certificate, and a change that makes a secret so that services name. Raises
    InvalidInput, without any value."""
    if kind is SERVICE and new.tls_secret and (old is None or old.tls_secret != new.tls_secret):
        secret = await view.get(SECRET, project, new.tls_secret)
        if secret is not None:  # else the reference is refused
            sealed = decode_part(secret.spec, SecretSpec).sealed
            _check(context, project, new.tls_secret, sealed, "spec.tls_secret")
    elif kind is SECRET and old is not None and old.sealed != new.sealed and await _is_used(view, project, name):
        _check(context, project, name, new.sealed, "spec.values")


def open_certificate(context: ApiContext, project: str | None, name: str, sealed: Mapping[str, str]) -> tuple[str, str]:
    """Certificate and key of the secret ``name``. Raises KeyError for one that it lacks, Unavailable."""
    keys = context.settings.seal_keys
    first, second = (keys.unseal(sealed[one], place_of(project, name, one)).decode() for one in (CERTIFICATE, KEY))
    return first, second


def _check(context: ApiContext, project: str | None, name: str, sealed: Mapping[str, str], field: str) -> None:
    missing = [one for one in (CERTIFICATE, KEY) if one not in sealed]
    if missing:
        fault = f"it has no {missing[0]}"
    else:
        fault = find_fault(*open_certificate(context, project, name, sealed), context.clock.now())
    if fault:
        raise InvalidInput(f"{field}: secret {name}: {fault}", field=field, hint=f"give it both: {_GIVE}")


async def _is_used(view: View, project: str | None, name: str) -> bool:
    page = await view.store.list(object_key(SERVICE.name, project, ""))
    specs = (decode_part(decode_envelope(entry.value, entry.revision).spec, ServiceSpec) for entry in page.entries)
    return any(spec.tls_secret == name for spec in specs)
