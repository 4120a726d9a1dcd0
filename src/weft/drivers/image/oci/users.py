"""The user and group that USER[:GROUP] means in an image, by its own passwd and group files. Pure.

Source: passwd(5), group(5), and what Docker does: a number need not stand in the files; a user's further groups count unless a
group is named.
"""

from __future__ import annotations

from weft.contracts.driver.container import User
from weft.objects.errors import InvalidInput

_MOST_ID = (1 << 32) - 2
_MOST_GROUPS = 256


def find_user(wanted: str, passwd: bytes, group: bytes) -> User:
    """Raises InvalidInput for a name that the image doesn't have."""
    name, _, group_name = wanted.partition(":")
    people = [
        row for row in _rows(passwd) if len(row) >= 6 and _number(row[2]) is not None and _number(row[3]) is not None
    ]
    groups = [row for row in _rows(group) if len(row) >= 4 and _number(row[2]) is not None]
    uid, gid, home, login = _number(name or "0"), 0, "/", ""
    by_name = next((row for row in people if row[0] == name), None) if name else None
    person = by_name or next((row for row in people if uid is not None and _number(row[2]) == uid), None)
    if person is not None:
        uid, gid, home, login = _number(person[2]), _number(person[3]) or 0, person[5] or "/", person[0]
    if uid is None:
        raise InvalidInput(
            f"spec.user: the image has no user {name[:60]!r}",
            field="spec.user",
            hint="use one from its /etc/passwd, or a number",
        )
    if group_name:
        found = next((_number(row[2]) for row in groups if row[0] == group_name), _number(group_name))
        if found is None:
            raise InvalidInput(
                f"spec.user: the image has no group {group_name[:60]!r}",
                field="spec.user",
                hint="use one from its /etc/group, or a number",
            )
        return User(uid, found, [], home)
    more = {_number(row[2]) or 0 for row in groups if login and login in row[3].split(",")}
    return User(uid, gid, sorted(more - {gid})[:_MOST_GROUPS], home)


def _rows(text: bytes) -> list[list[str]]:
    return [
        line.split(":") for line in text.decode("utf-8", "replace").splitlines() if line and not line.startswith("#")
    ]


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= _MOST_ID else None
