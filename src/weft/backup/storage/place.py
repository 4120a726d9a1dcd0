"""Storage by its address: ``dir://PATH`` or ``s3://BUCKET?endpoint=…&region=…&prefix=…``."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from weft.backup.errors import unreachable
from weft.backup.storage.contract import Storage
from weft.backup.storage.directory import DirectoryStorage
from weft.objects.errors import InvalidInput, Unavailable

_S3_SETTINGS = {"endpoint", "region", "prefix"}


def open_place(
    url: str,
    credentials: tuple[str, str] | None = None,
    *,
    ca: str = "",
    report: Callable[[str], None] | None = None,
) -> Storage:
    """The storage at ``url``; ``credentials`` are a bucket's access key and secret, ``ca`` the PEM that its certificate is checked
    with. With ``report`` every call waits while a bucket is away, and says why. Raises InvalidInput, Unavailable, Forbidden."""
    parts = urlsplit(url)
    if parts.scheme == "dir":
        path = Path(parts.netloc + parts.path)
        if not path.is_absolute() or parts.query:
            raise _bad(url, "a folder is dir:// and an absolute path, like dir:///srv/backups")
        if not path.is_dir():
            raise unreachable(url, "there is no such folder")
        return DirectoryStorage(path)
    if parts.scheme == "s3":
        settings = dict(parse_qsl(parts.query, keep_blank_values=True))
        if unknown := sorted(settings.keys() - _S3_SETTINGS):
            raise _bad(url, f"remove {unknown[0]!r}: a bucket's settings are endpoint, region and prefix")
        if not parts.netloc or parts.path.strip("/"):
            raise _bad(url, "a bucket is s3://BUCKET?endpoint=https://…&region=…&prefix=…")
        try:
            s3 = importlib.import_module("weft.backup.storage.s3")
        except ModuleNotFoundError as error:
            raise Unavailable(
                f"buckets need the Python package boto3, which is missing ({error})",
                hint="install it here: pip install '.[s3]' in weft's clone",
            ) from error
        storage: Storage = s3.S3Storage(url, parts.netloc, settings, credentials, ca=ca, report=report)
        return storage
    raise _bad(url, "it begins with dir:// or s3://")


def _bad(url: str, remedy: str) -> InvalidInput:
    return InvalidInput(f"{url!r} is not the address of a backup repository", field="url", hint=remedy)
