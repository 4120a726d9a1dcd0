"""``If-Match`` (RFC 9110): a change that is meant for one revision of an object, and for no later one. Pure.

An object's ETag is its revision, which moves with its status too; who only minds what people wrote sends ``generation``.
"""

from __future__ import annotations

import re

from weft.api.call import Call
from weft.kinds.record import Kind
from weft.objects.envelope import Envelope
from weft.objects.errors import InvalidInput, StaleRevision

_TAGS = re.compile(r'\s*(W/)?"[^"]*"(\s*,\s*(W/)?"[^"]*")*\s*')
_TAG = re.compile(r'(?<!/)"([0-9]{1,18})"')  # a weak one never matches here


class Match:
    """What a request's ``If-Match`` asks for; nothing if it has none, or there is no request. Raises InvalidInput for what is
    no list of ETags."""

    def __init__(self, call: Call | None = None) -> None:
        self._given = call.request.header(b"if-match") if call is not None else ""
        self._any = self._given.strip() == "*"
        if self._given and not self._any and not _TAGS.fullmatch(self._given):
            raise InvalidInput(
                f"If-Match: {self._given[:60]} is no ETag",
                field="If-Match",
                hint='send the ETag of the answer that was read, like "14675", or *',
            )
        self._revisions = {int(tag) for tag in _TAG.findall(self._given)}

    @property
    def is_given(self) -> bool:
        return bool(self._given)

    def check(self, kind: Kind, name: str, current: Envelope | None) -> None:
        """Raise StaleRevision (``etagMismatch``) unless ``current`` is what was meant."""
        if not self._given or (current is not None and (self._any or current.revision in self._revisions)):
            return
        now = "does not exist" if current is None else f"is at revision {current.revision}"
        raise StaleRevision(
            f'{kind.title} "{name}" {now}, not as If-Match has it: {self._given[:60]}',
            reason="etagMismatch",
            field="If-Match",
            hint="read it again and make the change to what it is now",
            details={} if current is None else {"revision": current.revision},
        )


def refuse_stale(kind: Kind, name: str, current: Envelope | None, revision: int | None) -> None:
    """Raise StaleRevision unless ``current`` is at ``revision``, if one was given."""
    if revision is None or (current is not None and current.revision == revision):
        return
    now = "does not exist" if current is None else f"is at revision {current.revision}"
    raise StaleRevision(
        f'{kind.title} "{name}" {now}, but revision {revision} of it was to be changed',
        field="revision",
        hint="read it again and make the change to what it is now, or leave revision out",
        details={} if current is None else {"revision": current.revision},
    )
