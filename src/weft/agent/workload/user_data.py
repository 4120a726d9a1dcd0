"""Whether an image carries out a new VM's user data: what nothing in the guest would read is refused before the VM has a disk."""

from __future__ import annotations

from weft.agent.image.cache import CachedImage
from weft.agent.state.allocation import LocalAllocation
from weft.objects.errors import InvalidInput

_SCRIPT = "#!"
# Source: cloud-init's documentation, "User-data formats" (it passes over white space before them, and over case); the last three
# are those of cloudbase-init, its sibling for Windows.
_FORMS = (
    "#cloud-config", "#include", "#cloud-boothook", "#part-handler", "#upstart-job", "## template: jinja", _SCRIPT,
    "content-type:", "mime-version:", "#ps1", "rem cmd", "#cmd",
)  # fmt: skip


def refuse_unread_user_data(local: LocalAllocation, image: CachedImage) -> None:
    """Raises InvalidInput: the image runs only scripts, or has cloud-init, which doesn't know the form."""
    text, seed = local.spec.user_data, image.manifest.seed
    name = f"image {local.spec.image.name}" if local.spec.image is not None else "its image"
    if not text.strip() or seed == "machine":  # a container image's machine says itself which line it doesn't know
        return
    if seed == "tar" and not text.startswith(_SCRIPT):
        raise InvalidInput(
            f"{local.what}: {name} has no cloud-init, and runs user data only if it begins with {_SCRIPT}",
            reason="noCloudInit",
            field="spec.user_data",
            hint="give a script, or use an image with cloud-init, such as debian-12 (weft image build debian-12)",
        )
    if seed == "nocloud" and not text.lstrip().lower().startswith(_FORMS):
        raise InvalidInput(
            f"{local.what}: its user data has no form that cloud-init knows, so nothing of it would be carried out",
            reason="unknownUserData",
            field="spec.user_data",
            hint="begin it with #cloud-config for a cloud-config, or with #! for a script",
        )
