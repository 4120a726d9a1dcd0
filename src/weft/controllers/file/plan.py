"""Plans which files by digest a server keeps: contents of images, functions' code, models, packages of an upgrade. Pure.

Each server has all code, models and packages; an image's content lies on the two servers that its digest chooses, and where it
came to be."""

from __future__ import annotations

from collections.abc import Iterable

from weft.client.server.files import choose_homes
from weft.informer.view import View
from weft.kinds.allocation import AllocationSpec, list_digests
from weft.kinds.function import FunctionSpec, FunctionStatus
from weft.kinds.function_version import FunctionVersionSpec
from weft.kinds.image import ImageStatus
from weft.kinds.model import ModelSpec
from weft.kinds.upgrade import UpgradeSpec


def find_named(view: View) -> set[str]:
    """The digests of all code that a function or a version needs, of the files of models, and of packages."""
    named: set[str] = set()
    for item in view.of_kind("function").values():
        named.add(item.spec(FunctionSpec).code)
        serving = item.status(FunctionStatus).serving
        named |= {serving.code} if serving is not None else set()
    for item in view.of_kind("functionversion").values():
        named.add(item.spec(FunctionVersionSpec).code)
    named |= {item.spec(ModelSpec).file for item in view.of_kind("model").values()}
    for item in view.of_kind("upgrade").values():
        named |= {one.sha256 for one in item.spec(UpgradeSpec).packages}  # also of one that is over: to go back to
    return named - {""}


def find_at_home(view: View, name: str, serving: Iterable[str]) -> set[str]:
    """The digests of images whose content lies on server ``name``, when it serves beside ``serving``."""
    servers = [name, *serving]
    digests = {
        status.sha256
        for item in view.of_kind("image").values()
        if not item.deleting and is_checked(status := item.status(ImageStatus))
    }
    return {sha256 for sha256 in digests if name in choose_homes(sha256, servers)}


def find_made(view: View) -> set[str]:
    """The uids of images that nodes are making, and send to a server."""
    images = view.of_kind("image").values()
    return {one.uid for one in images if one.status(ImageStatus).phase in ("Copying", "Fetching")}


def is_checked(status: ImageStatus) -> bool:
    """Whether the image's content was fetched and found good, also if it lies on one server only."""
    return bool(status.sha256 and status.format) and status.phase in ("Fetching", "Available")


def is_used(view: View, sha256: str) -> bool:
    """Whether an image or an allocation has the content."""
    return any(one.status(ImageStatus).sha256 == sha256 for one in view.of_kind("image").values()) or any(
        sha256 in list_digests(one.spec(AllocationSpec)) for one in view.of_kind("allocation").values()
    )
