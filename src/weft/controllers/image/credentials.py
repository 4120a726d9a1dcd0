"""The credentials of an image that names a registry secret. Reads images and secrets. A secret's content stands in no status,
event or error."""

from __future__ import annotations

from collections.abc import Callable

from weft.contracts.driver.image import RegistryCredentials
from weft.informer.view import Item, View
from weft.kinds.image import ImageSpec, read_oci
from weft.kinds.secret import PASSWORD, TOKEN, USERNAME, SecretSpec, place_of
from weft.objects.errors import InvalidInput, NotFound, Unavailable
from weft.objects.identity import object_key

Unseal = Callable[[str, str], bytes]  # takes the sealed text, and its purpose; raises Unavailable


def find_credentials(view: View, image: Item, unseal: Unseal | None) -> RegistryCredentials | None:
    """None if the image names no secret. Raises NotFound (``secretNotFound``), InvalidInput (``wrongSecret``: it is for another
    registry than the image's), Unavailable (``sealedByAnother``)."""
    spec, project = image.spec(ImageSpec), image.envelope.project
    name = spec.registry_secret
    if not name:
        return None
    if unseal is None:
        raise Unavailable("this server can't decrypt secrets", reason="sealedByAnother")
    item = view.get(object_key("secret", project, name))
    if item is None:
        raise NotFound(f"secret {name} does not exist", reason="secretNotFound", hint=f"weft secret create {name}")
    secret, asked = item.spec(SecretSpec), read_oci(spec.url).registry
    if secret.registry != asked:  # credentials are sent to their own registry only
        raise InvalidInput(
            f"secret {name} is for {secret.registry or 'no registry'}, but the image is in {asked}",
            reason="wrongSecret",
            field="spec.registry_secret",
            hint=f"use a secret with credentials for {asked}",
        )
    known = {
        key: unseal(secret.sealed[key], place_of(project, name, key)).decode()
        for key in (USERNAME, PASSWORD, TOKEN)
        if key in secret.sealed
    }
    return RegistryCredentials(known.get(USERNAME, ""), known.get(PASSWORD, ""), known.get(TOKEN, ""))
