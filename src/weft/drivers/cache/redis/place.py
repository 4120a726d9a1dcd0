"""The place of a Redis or Valkey: ``redis://HOST[:PORT][/NUMBER]``, ``rediss://…`` with TLS, ``unix:///PATH``. Pure."""

from __future__ import annotations

import re

import msgspec

from weft.objects.errors import InvalidInput

PORT = 6379
LIKE = "redis://192.168.7.5:6379, rediss://cache.example:6379 or unix:///run/redis/redis.sock"
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*\.?|\[[0-9A-Fa-f:.%a-z]{{2,60}}\]")


class RedisAddress(msgspec.Struct, frozen=True):
    """``path``: of a socket, "" for host and port. ``number``: of the database. ``user``: "" for the server's default one."""

    host: str = ""
    port: int = PORT
    path: str = ""
    number: int = 0
    user: str = ""
    tls: bool = False

    @property
    def words(self) -> str:
        """The place's name in errors and logs."""
        return self.path or (f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}")


def read_place(text: str) -> RedisAddress:
    """Raises InvalidInput; its words don't repeat what may be a password."""
    scheme, mark, rest = text.partition("://")
    if not mark or scheme not in ("redis", "rediss", "unix"):
        raise _refuse(f"{text.partition('@')[2][:60] or text[:60]!r} is not an address of a Redis")
    if scheme == "unix":
        if not rest.startswith("/") or not 1 < len(rest.encode()) <= 107:
            raise _refuse("a socket's path must begin with / and have at most 107 bytes")
        return RedisAddress(path=rest)
    login, at, place = rest.rpartition("@")
    user, colon, _ = login.partition(":")
    if colon:
        raise InvalidInput(
            "an address must not contain a password: settings are shown",
            field="cache",
            hint="write the password into a file, and its path as cache_password",
        )
    if at and not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", user):
        raise _refuse("the user before @ is not one")
    address, slash, number = place.partition("/")
    if slash and number and not re.fullmatch(r"[0-9]{1,4}", number):
        raise _refuse("after / comes the number of a database, like /0")
    host, port = address, str(PORT)
    if not _HOST.fullmatch(address):
        host, _, port = address.rpartition(":")
    if not _HOST.fullmatch(host) or not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65_535:
        raise _refuse(f"{address[:60]!r} is not a host with a port of at most 65535")
    return RedisAddress(host.strip("[]"), int(port), number=int(number or 0), user=user, tls=scheme == "rediss")


def _refuse(what: str) -> InvalidInput:
    return InvalidInput(what, field="cache", hint=f"write like {LIKE}")
