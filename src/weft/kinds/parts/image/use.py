"""Uses of an image: a VM boots a disk, containers and functions run a container image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

from weft.kinds.image import OCI_FORMAT, ImageStatus
from weft.objects.errors import InvalidInput

User = Literal["VM", "container", "function"]

# Reasons for which fetching an image failed and is tried again: automatically, and with another content of its secret.
MAY_PASS = ("fetchFailed", "noSpace", "registryUnavailable", "registryHangs", "truncated")
SECRET_NOT_GOOD = ("secretNotFound", "wrongSecret", "sealedByAnother", "notAuthenticated", "forbidden")

_WRONG = {
    "VM": "image {0} is a container image, not a disk",
    "container": "image {0} is a disk for VMs; a container runs an OCI image",
    "function": "image {0} is a disk for VMs; a function runs an OCI image",
}
_REMEDY = {
    "VM": "weft container create NAME --image {0} runs it as a container; weft image add NAME oci://{0} makes a disk of it",
    "container": "weft image add NAME FILE.tar, or REGISTRY/NAME:TAG",
    "function": "weft image add NAME FILE.tar, or REGISTRY/NAME:TAG",
}


def find_wrong_image(name: str, status: ImageStatus, user: User) -> tuple[str, str] | None:
    """Why ``user`` can't run an image that is available, and what to do; None if it can."""
    if status.phase != "Available" or (status.format == OCI_FORMAT) != (user == "VM"):
        return None
    return _WRONG[user].format(name), _REMEDY[user].format(name)


def check_image_use(user: User, field: str) -> Callable[[Any, Mapping[str, ImageStatus]], None]:
    """The check of the images that ``field`` of a ``user`` names: ``Reference.suffices``."""
    return partial(_check_images, user, field)


def _check_images(user: User, field: str, _: Any, images: Mapping[str, ImageStatus]) -> None:
    """Raises InvalidInput for an image that ``user`` can never run. One that is still fetched may become right."""
    for name, status in images.items():
        wrong = find_wrong_image(name, status, user)
        if wrong is not None:
            raise InvalidInput(f"{field}: {wrong[0]}", reason="wrongImage", field=field, hint=wrong[1])
        if status.phase == "Failed" and status.reason not in (*MAY_PASS, *SECRET_NOT_GOOD):
            why = f": {status.message or status.reason}" if "/" not in name else ""  # another project's is not told
            raise InvalidInput(
                f"{field}: image {name} failed{why}",
                reason="imageFailed",
                field=field,
                hint=f"use another image, or delete {name} and add it again",
            )
