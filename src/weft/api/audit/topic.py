"""What a request is about, by its method and path: which object, which verb, and whether it belongs in the audit log. Pure.

Recorded are all changes, commands and consoles in guests, and what only few may read: tokens, secrets, contents of images, and the
log itself. A refused request is recorded whatever it was for; other reads, nodes' reports and questions to the scheduler are not.
"""

from __future__ import annotations

import functools
from typing import Literal

import msgspec

from weft.api.request.call import read_segments
from weft.api.request.target import read_target
from weft.kinds.permissions import find_right_to_read
from weft.kinds.record import Kind
from weft.kinds.secret import SECRET
from weft.objects.errors import WeftError
from weft.trust.redaction import hide_in_text

MOST_KEPT = 2048  # paths whose topics are cached …
LONGEST_KEPT = 200  # … if they have no more characters
_VERBS = {"GET": "read", "POST": "create", "PUT": "change", "PATCH": "change", "DELETE": "delete"}


class Topic(msgspec.Struct, frozen=True):
    when: Literal["always", "by people", "refused"]  # which requests of the sort are recorded
    verb: str
    kind: str = ""
    project: str = ""
    name: str = ""


@functools.lru_cache(MOST_KEPT)
def find_topic(method: str, path: str) -> Topic:
    """The topic of a request, whether or not there is something at ``path``."""
    verb = _VERBS.get(method, method.lower())
    changes: Literal["always", "refused"] = "refused" if method == "GET" else "always"
    if path.startswith("/api/v1/"):  # a query of metrics may come by POST
        return Topic("refused", "read", "metric")
    try:
        rest = read_segments(path)[1:]
        match rest:
            case ["projects", project, "code", _]:
                return Topic(changes, "upload", "function", hide_in_text(project[:63]))
            case ["blobs", _]:
                return Topic("by people", verb, "image")
            case ["audit" | "audit:verify"]:
                return Topic("by people", "verify" if "verify" in path else verb, "audit")
            case ["apply" | "join" | "login"]:
                return Topic(changes, rest[0])
        target = read_target(rest)
    except WeftError:
        return Topic(changes, verb)
    kind = target.kind
    # A client may put a token where a name belongs.
    about = (kind.name, hide_in_text(target.project or ""), hide_in_text(target.name or ""))
    if target.verb is not None:
        return Topic(_when(kind, target.verb), hide_in_text(target.verb[:63]), *about)
    if method == "GET":
        is_guarded = find_right_to_read(kind) != "read" or kind is SECRET
        return Topic("by people" if is_guarded else "refused", verb, *about)
    return Topic("refused" if kind.lifetime.ephemeral else changes, verb, *about)


def _when(kind: Kind, name: str) -> Literal["always", "refused"]:
    if kind.lifetime.ephemeral or (kind.lifetime.runs_workloads and name == "report"):
        return "refused"
    verb = kind.verb(name)
    return "refused" if verb is not None and verb.needs == "read" else "always"
