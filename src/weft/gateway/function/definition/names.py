"""How callers name a function: thumb, thumb:3, thumb:prod, PROJECT:function:thumb, or an ARN. Pure."""

from __future__ import annotations

import re
from urllib.parse import unquote

import msgspec

from weft.contracts.driver.function import LATEST, REGION
from weft.objects.errors import InvalidInput

_NAME = re.compile(
    r"(?:(?:arn:(?P<partition>aws[a-z-]*|weft):lambda:(?P<region>[a-z0-9-]+):)?(?P<project>[a-z0-9-]{1,63}):function:)?"
    r"(?:function:)?(?P<name>[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?)(?::(?P<qualifier>\$LATEST|[a-z0-9-]{1,63}))?"
)


class Named(msgspec.Struct, frozen=True):
    """``project`` "": the caller's own. ``qualifier`` "": the newest."""

    name: str
    project: str = ""
    qualifier: str = ""


def read_name(segment: str, qualifier: str = "") -> Named:
    """A function's name from a percent-encoded path segment, and a Qualifier beside it. Raises InvalidInput."""
    found = _NAME.fullmatch(unquote(segment))
    if found is None or (found["project"] == "function"):
        raise InvalidInput(
            f"{unquote(segment)[:80]!r} names no function",
            field="FunctionName",
            hint="write thumb, thumb:prod, PROJECT:function:thumb, or arn:weft:lambda:weft:PROJECT:function:thumb",
        )
    if found["region"] and found["region"] != REGION:
        raise InvalidInput(
            f"the ARN is of region {found['region']}; this is {REGION}",
            field="FunctionName",
            hint="give the function's name alone",
        )
    behind = found["qualifier"] or ""
    if behind and qualifier and behind != qualifier:
        raise InvalidInput(
            f"the name has {behind}, and Qualifier is {qualifier[:80]!r}", field="Qualifier", hint="give one of them"
        )
    chosen = behind or qualifier
    if chosen and chosen != LATEST and not re.fullmatch(r"[a-z0-9-]{1,63}", chosen):
        raise InvalidInput(
            f"{chosen[:80]!r} is neither a version nor an alias", field="Qualifier", hint="write it like 3 or prod"
        )
    return Named(found["name"], found["project"] or "", "" if chosen == LATEST else chosen)


def make_arn(project: str, name: str, qualifier: str = "") -> str:
    return f"arn:weft:lambda:{REGION}:{project}:function:{name}" + (f":{qualifier}" if qualifier else "")
