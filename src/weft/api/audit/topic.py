"""Find the topic of a request by its method and path: which object, which verb, and whether it belongs in the audit log. Pure.

Recorded are all changes, whatever opens a guest or shows what it wrote (consoles, logs, files of its backups), and what only few
may read: tokens, secrets, contents of images, and the log itself. A refused request is recorded whatever it was for; other reads,
nodes' reports and questions to the scheduler are not. A route may have a topic of its own (``api/route.py``).
"""

from __future__ import annotations

from typing import Literal

from weft.api.request.call import read_segments
from weft.api.request.target import Target, read_target
from weft.api.route import Topic
from weft.kinds.permissions import find_right_to_read
from weft.kinds.record import Kind
from weft.kinds.secret import SECRET
from weft.objects.errors import WeftError
from weft.trust.redaction import hide_in_text

_VERBS = {"GET": "read", "POST": "create", "PUT": "change", "PATCH": "change", "DELETE": "delete"}


def find_topic(method: str, path: str) -> Topic:
    """The topic of a request, whether or not there is something at ``path``, if no route has another."""
    if path.startswith("/api/v1/"):  # a query of metrics may come by POST
        return Topic("refused", "read", "metric")
    try:
        return topic_of(method, read_target(read_segments(path)[1:]))
    except WeftError:
        return Topic(_when_by(method), _VERBS.get(method, method.lower()))


def topic_of(method: str, target: Target) -> Topic:
    """The topic of a request for objects of a kind."""
    kind = target.kind
    # A client may put a token where a name belongs.
    about = (kind.name, hide_in_text(target.project or ""), hide_in_text(target.name or ""))
    if target.verb is not None:
        return Topic(_when(kind, target.verb), hide_in_text(target.verb[:63]), *about)
    verb = _VERBS.get(method, method.lower())
    if method == "GET":
        is_guarded = find_right_to_read(kind) != "read" or kind is SECRET
        return Topic("by people" if is_guarded else "refused", verb, *about)
    return Topic("refused" if kind.lifetime.ephemeral else "always", verb, *about)


def _when_by(method: str) -> Literal["always", "refused"]:
    return "refused" if method == "GET" else "always"


def _when(kind: Kind, name: str) -> Literal["always", "by people", "refused"]:
    verb = kind.verb(name)
    if kind.lifetime.ephemeral or (verb is not None and verb.figures):
        return "refused"
    return "by people" if verb is not None and verb.needs == "read" else "always"
