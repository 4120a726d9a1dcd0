"""BackupRepository: where backups go: a folder that the nodes reach, or a bucket. Everything in it is encrypted with its key."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping
from typing import Annotated
from urllib.parse import parse_qsl, urlsplit

import msgspec

from weft.kinds.fields.backup_work import BackupOrder
from weft.kinds.fields.cells import AGE, NAME, dig, note, size, text
from weft.kinds.parts.goal import is_settled, read_phase
from weft.kinds.parts.stream_verbs import CONTENTS
from weft.kinds.record import Access, Admission, Column, Display, Goal, Index, Kind, Lifetime, Object, uid_of
from weft.kinds.secret import SealedSpec, check_values
from weft.objects.errors import InvalidInput
from weft.objects.identity import is_name
from weft.objects.quantity import format_bytes
from weft.objects.schema import field, words

KEY = "key"  # 32 bytes in hexadecimal digits
ACCESS_KEY, SECRET_KEY = "access_key", "secret_key"
_KEY_TEXT = re.compile(r"[0-9a-fA-F]{64}")
_OPTIONS = {"dir": frozenset[str](), "s3": frozenset({"endpoint", "region", "prefix"})}
_MOST_CA = 64 << 10
_SHAPES = "dir:///PATH, a folder that every node has, or s3://BUCKET?endpoint=URL"


class BackupRepositorySpec(SealedSpec, kw_only=True):
    url: Annotated[str, field("Where it is: dir:///PATH or s3://BUCKET?endpoint=URL", change="never", max_length=1000)]
    immutable: Annotated[
        bool,
        field("Lock what is stored until the backup's time is over; takes a bucket with Object Lock", change="never"),
    ] = False
    credentials: Annotated[
        str,
        field("Secret with the bucket's access_key and secret_key, as PROJECT/NAME; instead of values", change="live"),
    ] = ""
    ca: Annotated[
        str,
        field(
            "Certificates, in PEM, of the CA that signed the endpoint's; unset: those that the nodes trust",
            change="live",
            max_length=_MOST_CA,
        ),
    ] = ""


class BackupRepositoryStatus(msgspec.Struct, kw_only=True):
    phase: Annotated[str, words("Pending", "Ready", "Failed")] = "Pending"
    id: str = ""  # its own, written in it
    lies_there: bool = (
        False  # one that can't be opened was seen at the URL: weft makes no other there, also while that is away
    )
    bytes: int = 0  # that backups take up in it
    free: int = -1  # bytes left on its storage; -1: unknown
    backups: int = 0
    node: str = ""  # that checked it last
    checked_at: float | None = None
    observed_generation: int = 0  # of the spec that it was last checked as
    ordered_generation: int = 0  # of the spec that the order is for
    counted_at: float = 0.0  # when a node last said how many backups there are, by its clock
    order: BackupOrder | None = None  # what that node is asked to do now
    reason: str = ""
    message: str = ""


def is_key(text: str) -> bool:
    return _KEY_TEXT.fullmatch(text) is not None


def check_repository(spec: BackupRepositorySpec) -> None:
    """Raises InvalidInput, which never contains a value."""
    check_values(spec)
    if strange := next((one for one in spec.url if not one.isprintable()), ""):  # parsers leave some out
        raise _refuse(f"spec.url: it contains {strange!r}", f"write {_SHAPES}")
    try:
        url = urlsplit(spec.url)
        options = dict(parse_qsl(url.query, keep_blank_values=True))
        endpoint = urlsplit(options.get("endpoint", ""))
    except ValueError:
        raise _refuse("spec.url: it is not a URL", f"write {_SHAPES}") from None
    # Before the URL is in any message: with credentials it may not be.
    if "@" in url.netloc or "@" in endpoint.netloc or url.fragment:
        raise _refuse("spec.url: credentials don't belong in the URL", "give them as values: access_key, secret_key")
    known = _OPTIONS.get(url.scheme)
    if known is None:
        raise _refuse(f"spec.url: {spec.url[:80]!r} is not a place for backups", f"write {_SHAPES}")
    if unknown := sorted(options.keys() - known):
        raise _refuse(
            f"spec.url: {unknown[0][:60]!r} is not an option of {url.scheme}:",
            f"options: {', '.join(sorted(known)) or 'none'}",
        )
    if url.scheme == "dir":
        _check_folder(url.netloc, url.path)
    elif not url.netloc or url.path.strip("/"):
        raise _refuse("spec.url: name one bucket", "write s3://BUCKET?endpoint=URL&prefix=FOLDER")
    elif "endpoint" in options and (endpoint.scheme not in ("http", "https") or not endpoint.hostname):
        raise _refuse(
            "spec.url: the endpoint is not a URL",
            "write endpoint=https://HOST:PORT, or http://HOST:PORT if it has no TLS",
        )
    _check_access(spec, url.scheme, endpoint.scheme)
    if spec.immutable and url.scheme != "s3":
        raise InvalidInput(
            "spec.immutable: a folder can't be made immutable, since root can delete any file in it",
            field="spec.immutable",
            hint="use a bucket with Object Lock: s3://BUCKET?endpoint=URL",
        )
    _check_values(spec, url.scheme)


def _check_access(spec: BackupRepositorySpec, scheme: str, endpoint: str) -> None:
    """The secret and the CA, which only a bucket has."""
    for name, value in (("credentials", spec.credentials), ("ca", spec.ca)):
        if value and scheme != "s3":
            raise InvalidInput(f"spec.{name}: only a bucket takes it", field=f"spec.{name}", hint="leave it out")
    project, slash, name = spec.credentials.partition("/")
    if spec.credentials and (not slash or "/" in name or not is_name(project) or not is_name(name)):
        raise InvalidInput(
            f"spec.credentials: {spec.credentials[:80]!r} is not a secret",
            field="spec.credentials",
            hint="write PROJECT/NAME of a secret with the values access_key and secret_key",
        )
    if spec.credentials and {ACCESS_KEY, SECRET_KEY} & {*spec.values, *spec.sealed}:
        raise InvalidInput(
            "spec.credentials: the bucket's keys are in spec.values, too",
            field="spec.credentials",
            hint="give them in one place: in the secret, or as values",
        )
    if spec.ca and (endpoint == "http" or "-----BEGIN CERTIFICATE-----" not in spec.ca):
        why = "the endpoint has no TLS" if endpoint == "http" else "it is not a certificate in PEM"
        raise InvalidInput(
            f"spec.ca: {why}",
            field="spec.ca",
            hint="give the CA's certificate: weft backuprepository create … --ca FILE",
        )


def _check_folder(host: str, path: str) -> None:
    if host or not path.startswith("/"):
        raise _refuse("spec.url: name a folder by its whole path", "write dir:///srv/backups, with three slashes")
    if ".." in path.split("/") or path.strip("/") == "" or "\x00" in path:
        raise _refuse(f"spec.url: {path[:80]!r} is not a folder for backups", "write dir:///srv/backups")


def _check_given(values: Mapping[str, str]) -> None:
    """Raises InvalidInput, which never contains a value."""
    key = values.get(KEY)
    if key is not None and not is_key(key):
        raise InvalidInput(
            "spec.values.key must be 64 hexadecimal digits",
            field="spec.values.key",
            hint="leave it out for a new repository; weft backuprepository key NAME prints an existing one's",
        )
    if empty := sorted(name for name in (ACCESS_KEY, SECRET_KEY) if values.get(name) == ""):
        raise InvalidInput(
            f"spec.values.{empty[0]} is empty", field=f"spec.values.{empty[0]}", hint="give the bucket's own"
        )


def _check_values(spec: BackupRepositorySpec, scheme: str) -> None:
    _check_given(spec.values)
    given = {*spec.values, *spec.sealed}
    if unknown := sorted(given - {KEY, ACCESS_KEY, SECRET_KEY}):
        raise InvalidInput(
            f"spec.values.{unknown[0][:60]} means nothing to a backup repository",
            field=f"spec.values.{unknown[0][:60]}",
            hint=f"values: {KEY}, {ACCESS_KEY}, {SECRET_KEY}",
        )
    if scheme == "s3" and not spec.credentials and not {ACCESS_KEY, SECRET_KEY} <= given:
        raise InvalidInput(
            "spec.values: a bucket needs access_key and secret_key",
            field="spec.values",
            hint="put both into a secret, and name it: weft backuprepository create NAME --url s3://… --credentials SECRET",
        )


def _refuse(message: str, hint: str) -> InvalidInput:
    return InvalidInput(message, field="spec.url", hint=hint)


def _find_rights(old: BackupRepositorySpec | None, new: BackupRepositorySpec) -> Iterable[tuple[str, str]]:
    """Rights of who names a secret: its values are used at an address of their choice."""
    if new.credentials and (old is None or old.credentials != new.credentials):
        yield "secret:update", "use a secret for a backup repository"


def _free(obj: Object) -> str:
    free = dig(obj, "status.free", -1)
    return format_bytes(free) if free >= 0 else "–"


REPOSITORIES_BY_UID = Index("backup repositories by uid")


def _is_ready(obj: Object | None) -> bool:
    """Whether a node has opened it, as its spec says now."""
    return is_settled(obj) and read_phase(obj) == "Ready"


BACKUP_REPOSITORY = Kind(
    name="backuprepository",
    plural="backuprepositories",
    title="backup repository",
    summary="Where backups go: a folder or a bucket, encrypted",
    scope="fabric",
    spec=BackupRepositorySpec,
    status=BackupRepositoryStatus,
    indexes={REPOSITORIES_BY_UID: uid_of},
    verbs=(CONTENTS,),
    access=Access(
        readers="shared",
        status_writer="backup repositories",
        further_rights=_find_rights,
        # Where it is, which its messages say too, how it is opened, and what everybody keeps in it: its name and phase are for
        # everyone.
        fabric_fields=(
            *("spec.url", "spec.ca", "spec.credentials", "spec.sealed"),
            *("status.id", "status.bytes", "status.backups", "status.message"),
        ),
    ),
    admission=Admission(
        check=check_repository,
        kept_fields=("sealed",),
        seals=True,
        check_values=_check_given,
        makes_values=lambda _: {KEY: secrets.token_hex(32)},
    ),
    display=Display(
        topic="Storage and networks",
        columns=(
            NAME,
            Column("PHASE", text("status.phase", "Pending"), keep=True),
            Column("URL", text("spec.url", "–"), flexible=True),
            Column("BACKUPS", text("status.backups", "–"), align="right"),
            Column("SIZE", size("status.bytes"), align="right"),
            Column("FREE", _free, align="right"),
            AGE,
            Column("NOTE", note, flexible=True),
        ),
    ),
    lifetime=Lifetime(
        goals={"create": Goal(_is_ready, "Ready")},
        remedy=lambda _: "correct the URL, the key or the credentials, and create it again",
    ),
)
