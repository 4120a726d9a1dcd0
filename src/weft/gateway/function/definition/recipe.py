"""The recipe of one version of a function: all that its instances share, identified by its digest. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from typing import NamedTuple

import msgspec

from weft.contracts.driver.function import LATEST, Blob, Recipe
from weft.kinds.parts.function_code import FunctionCode
from weft.trust.tickets import sign_blob_ticket, sign_secret_ticket


class Owner(NamedTuple):
    """The function of a recipe."""

    function: str  # uid
    seconds: float  # that its invocations may take
    project: str


def make_recipe(
    function_uid: str,
    project: str,
    name: str,
    version: str,
    code: FunctionCode,
    base: Blob | None,
    image: str = "",
    network: str = "",
    archive: Blob | None = None,
) -> Recipe:
    """The recipe of ``code``. ``base`` is the content of the image that ``base_of`` names; ``image`` the code's own with its
    digest, once that is known, and ``archive`` its content if weft holds it; ``network`` the uid of its network."""
    recipe = Recipe(
        digest="",
        function=function_uid,
        project=project,
        name=name,
        version=version or LATEST,
        isolation=code.isolation,
        runtime=code.runtime,
        base=base,
        code=Blob(code.code, code.code_size) if code.code else None,
        image=image or code.image,
        archive=archive,
        registry_secret=code.registry_secret,
        command=list(code.command),
        handler=code.handler,
        env=dict(sorted(code.env.items())),
        cpu=code.cpu,
        memory=code.memory,
        timeout=code.timeout,
        scratch=code.scratch,
        network=network,
        warm_calls=code.warm_calls,
    )
    digest = hashlib.sha256(msgspec.msgpack.encode(recipe)).hexdigest()
    return msgspec.structs.replace(recipe, digest=digest)


def with_tickets(recipe: Recipe, key: bytes, node_uid: str, now: float) -> Recipe:
    """The recipe for a node, which may fetch its parts for BLOB_LIFETIME_SECONDS (``now``: unix seconds)."""

    def sign(blob: Blob | None) -> Blob | None:
        if blob is None:
            return None
        return msgspec.structs.replace(blob, ticket=sign_blob_ticket(key, blob.sha256, node_uid, now))

    secret = recipe.registry_secret
    ticket = sign_secret_ticket(key, recipe.project, secret, node_uid, now) if secret else ""
    signed = {name: sign(getattr(recipe, name)) for name in ("base", "code", "archive")}
    return msgspec.structs.replace(recipe, **signed, registry_ticket=ticket)


def data_of(recipe: Recipe) -> tuple[tuple[str, int], ...]:
    """The data that an instance reads, for placement: the prepared recipe (for a machine with its template), and the base, which a
    node may have because of another recipe."""
    base = 0 if recipe.base is None else recipe.base.size
    own = base + sum(blob.size for blob in (recipe.code, recipe.archive) if blob is not None)
    mine = (f"recipe:{recipe.digest}", own + (recipe.memory if recipe.isolation == "vm" else 0))
    return (mine,) if recipe.base is None else (mine, (f"image:{recipe.base.sha256}", base))


def data_at(digests: Collection[str], find: Callable[[str], Recipe | None]) -> frozenset[str]:
    """The data on a node that has prepared the recipes ``digests``; ``find`` gives a known recipe."""
    names = {f"recipe:{digest}" for digest in digests}
    known = [recipe.base for digest in digests if (recipe := find(digest)) is not None]
    return frozenset(names | {f"image:{base.sha256}" for base in known if base is not None})
