"""Contents of a project's backup, as JSON: its objects as they were at one instant. Its secrets only a server opens again."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from weft.objects.schema import field

USE = "objects of projects"  # what a key is derived for, from that of the repository


class BackedUpObject(msgspec.Struct, kw_only=True, omit_defaults=True):
    kind: str
    name: str
    labels: dict[str, str] = {}
    spec: dict[str, Any] = {}  # without what only the server sets
    sealed: dict[str, str] = {}  # a secret's values by key, sealed with the key of the repository
    has_data: bool = False  # a disk, which other backups have


class BackedUpProject(msgspec.Struct, kw_only=True):
    project: str
    taken_at: float  # seconds since 1970
    objects: list[BackedUpObject] = []
    schema: int = 1


class SealedElsewhere(msgspec.Struct, kw_only=True, frozen=True):
    """Values of a secret that come from a backup: the server opens them with the key of the repository."""

    repository: Annotated[str, field("Backup repository that the backup is in", name=True)]
    project: Annotated[str, field("Project that the secret was in", name=True)]
    name: Annotated[str, field("Name that the secret had", name=True)]
    values: Annotated[dict[str, str], field("Values by key, sealed with the key of the repository")]
