"""``If-Match`` and ``If-None-Match`` (RFC 9110): a change only if the object has a certain revision, or doesn't exist; a read only
if the object has changed. Pure.

An object's ETag is its revision, which changes with its status too; a client that only minds the spec sends ``generation``.
"""

from __future__ import annotations

import re

import msgspec

from weft.api.request.call import Call
from weft.kinds.record import Kind
from weft.objects.envelope import Envelope
from weft.objects.errors import InvalidInput, StaleRevision

_TAGS = re.compile(r'\s*(W/)?"[^"]*"(\s*,\s*(W/)?"[^"]*")*\s*')
_STRONG = re.compile(r'(?<!/)"([0-9]{1,18})"')
_ANY = re.compile(r'"([0-9]{1,18})"')


class _Tags(msgspec.Struct, frozen=True):
    """A header's ETags; ``text`` is empty without it."""

    text: str
    revisions: frozenset[int]

    def hold(self, revision: int) -> bool:
        return self.text.strip() == "*" or revision in self.revisions


_NONE = _Tags("", frozenset())


class Match:
    """The conditions in a request's headers; none without a request. Raises InvalidInput for a header that is no list of ETags."""

    def __init__(self, call: Call | None = None) -> None:
        self._only = self._not = _NONE
        if call is not None:
            self._only = _read(call, b"if-match", "If-Match", _STRONG)  # a weak one never matches here
            self._not = _read(call, b"if-none-match", "If-None-Match", _ANY)

    @property
    def is_given(self) -> bool:
        return bool(self._only.text or self._not.text)

    def check(self, kind: Kind, name: str, current: Envelope | None) -> None:
        """Raise StaleRevision (``etagMismatch``) unless ``current`` meets the conditions."""
        if self._only.text and (current is None or not self._only.hold(current.revision)):
            now = "does not exist" if current is None else f"is at revision {current.revision}"
            field, what = "If-Match", f"{now}, which doesn't match If-Match: {self._only.text[:60]}"
        elif current is not None and self._not.text and self._not.hold(current.revision):
            field, what = (
                "If-None-Match",
                f"is at revision {current.revision}, which matches If-None-Match: {self._not.text[:60]}",
            )
        else:
            return
        raise StaleRevision(
            f'{kind.title} "{name}" {what}',
            reason="etagMismatch",
            field=field,
            hint="read the object again and apply the change to what it is now",
            details={} if current is None else {"revision": current.revision},
        )


def is_known(call: Call, revision: int) -> bool:
    """Whether the reader has this revision, by its ``If-None-Match``. Raises InvalidInput."""
    tags = _read(call, b"if-none-match", "If-None-Match", _ANY)
    return bool(tags.text) and tags.hold(revision)


def _read(call: Call, name: bytes, header: str, tag: re.Pattern[str]) -> _Tags:
    text = call.request.header(name)
    if not text:
        return _NONE
    if text.strip() != "*" and not _TAGS.fullmatch(text):
        raise InvalidInput(
            f"{header}: {text[:60]} is not an ETag",
            field=header,
            hint='send the ETag of the response that was read, like "14675", or *',
        )
    return _Tags(text, frozenset(int(found) for found in tag.findall(text)))


def refuse_stale(kind: Kind, name: str, current: Envelope | None, revision: int | None) -> None:
    """Raise StaleRevision unless ``current`` is at ``revision``, if one was given."""
    if revision is None or (current is not None and current.revision == revision):
        return
    now = "does not exist" if current is None else f"is at revision {current.revision}"
    raise StaleRevision(
        f'{kind.title} "{name}" {now}, so its revision {revision} can\'t be changed',
        field="revision",
        hint="read the object again and apply the change to what it is now, or leave revision out",
        details={} if current is None else {"revision": current.revision},
    )
