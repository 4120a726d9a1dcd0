"""Checks the environment variables of a process, from its spec and from secrets. Pure."""

from __future__ import annotations

import re

from weft.objects.errors import InvalidInput
from weft.objects.identity import check_name

MOST_ENV_BYTES = 64 * 1024
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def check_env(env: dict[str, str], of: str = "env") -> None:
    """Check variables; ``of`` is the field of the spec. Raises InvalidInput."""
    for name, value in env.items():
        if not _ENV_NAME.fullmatch(name) or "\0" in value:
            raise InvalidInput(
                f"spec.{of}: {name[:60]!r} is not a valid name of a variable"
                if "\0" not in value
                else f"spec.{of}.{name[:60]}: the value contains a NUL character",
                field=f"spec.{of}",
                hint="a name has letters, digits and _, and begins with no digit",
            )
    if sum(len(name) + len(value.encode()) + 2 for name, value in env.items()) > MOST_ENV_BYTES:
        raise InvalidInput(
            "spec.env: larger than 64 KiB in all",
            field="spec.env",
            hint="give at most 64 KiB; put larger data into a volume",
        )


def check_env_secrets(secrets: dict[str, str], env: dict[str, str]) -> None:
    """``secrets``: NAME=SECRET/KEY, beside the variables in ``env``. Raises InvalidInput."""
    check_env(dict.fromkeys(secrets, ""), "env_secrets")
    for name, place in secrets.items():
        at = f"spec.env_secrets.{name}"
        secret, _, key = place.partition("/")
        if not key or "/" in key:
            hint = "write SECRET/KEY, like db/password"
            raise InvalidInput(f"{at}: {place[:60]!r} is not a key of a secret", field=at, hint=hint)
        check_name(secret, at)
        if name in env:
            raise InvalidInput(f"{at}: spec.env sets {name}, too", field=at, hint="set it in one of the two")
