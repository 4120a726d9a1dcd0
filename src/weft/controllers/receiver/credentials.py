"""Read a receiver's Secret. A value stands in no status, event, log or error."""

from __future__ import annotations

from weft.controllers.image.credentials import Unseal
from weft.informer.view import Item, View
from weft.kinds.receiver import PASSWORD, SIGNING_KEY, TOKEN, USERNAME, ReceiverSpec
from weft.kinds.secret import SecretSpec, place_of
from weft.objects.errors import InvalidInput, NotFound, Unavailable
from weft.objects.identity import object_key

_KEYS = {"webhook": (SIGNING_KEY,), "email": (USERNAME, PASSWORD), "alertmanager": (USERNAME, PASSWORD, TOKEN)}


def open_secret(view: View, receiver: Item, unseal: Unseal | None) -> dict[str, str]:
    """The values by key; empty if it names no Secret. Raises NotFound, InvalidInput, Unavailable."""
    spec, project = receiver.spec(ReceiverSpec), receiver.envelope.project
    if not spec.secret:
        return {}
    item = view.get(object_key("secret", project, spec.secret))
    if item is None:
        raise NotFound(f"secret {spec.secret} does not exist", hint=f"weft secret create {spec.secret}")
    if unseal is None:
        raise Unavailable("this server can't decrypt secrets")
    secret = item.spec(SecretSpec)
    if secret.registry:
        raise InvalidInput(f"secret {spec.secret} is for registry {secret.registry}", field="spec.secret")
    wanted = [key for key in _KEYS[spec.type] if key in secret.sealed]
    if not wanted:
        names = ", ".join(_KEYS[spec.type])
        raise InvalidInput(f"secret {spec.secret} has none of {names}", field="spec.secret")
    found = {
        key: unseal(secret.sealed[key], place_of(project, spec.secret, key)).decode().rstrip("\r\n") for key in wanted
    }
    for key, value in found.items():
        if not value.isprintable():
            raise InvalidInput(f"{key} in secret {spec.secret} is not one line of text", field="spec.secret")
    return found
