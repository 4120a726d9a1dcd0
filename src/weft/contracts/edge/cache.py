"""The cache contract: values under keys for a time, which programs of a site share. Nothing of truth is in one: what it forgets
comes again, and who writes to it goes on without it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from weft.objects.errors import InvalidInput

MOST_KEY_BYTES = 512
MOST_VALUE_BYTES = 1 << 20
MOST_TOGETHER = 1000  # keys in one call
MOST_PUT_BYTES = 16 << 20  # of all values in one call
MOST_SECONDS = 7 * 86400.0


class Cache(Protocol):
    """Each call ends within ``ANSWER_SECONDS`` of its driver, whatever the engine does. Raises InvalidInput (beyond a bound above),
    Unavailable (the engine isn't there, is full, or says what it can't), TimedOut (it is silent)."""

    async def get(self, key: str) -> bytes | None:
        """The value, None when there is none or its time is over."""

    async def put(self, values: Mapping[str, bytes], seconds: float) -> None:
        """Keep these for ``seconds``, in place of what was under their keys. When there are too many, those written first go."""

    async def delete(self, keys: Sequence[str]) -> None:
        """Absent is fine."""

    async def close(self) -> None: ...


def check_put(values: Mapping[str, bytes], seconds: float) -> None:
    """Raises InvalidInput when a driver must refuse them."""
    check_keys(list(values))
    for key, value in values.items():
        if len(value) > MOST_VALUE_BYTES:
            raise InvalidInput(
                f"{key[:60]!r}: a value of {len(value)} bytes is too large",
                field="value",
                hint=f"keep at most {MOST_VALUE_BYTES} bytes under one key",
            )
    if (size := sum(map(len, values.values()))) > MOST_PUT_BYTES:
        raise InvalidInput(
            f"values of {size} bytes are too much for one call",
            field="values",
            hint=f"put at most {MOST_PUT_BYTES} bytes together",
        )
    if not 0.001 <= seconds <= MOST_SECONDS:
        raise InvalidInput(
            f"seconds: {seconds:g} is not a time to live",
            field="seconds",
            hint=f"give from 0.001 to {MOST_SECONDS:.0f}",
        )


def check_keys(keys: Sequence[str]) -> None:
    """Raises InvalidInput when a driver must refuse them."""
    if len(keys) > MOST_TOGETHER:
        raise InvalidInput(
            f"{len(keys)} keys are too many for one call", field="keys", hint=f"give at most {MOST_TOGETHER}"
        )
    for key in keys:
        try:
            size = len(key.encode())
        except UnicodeEncodeError:
            size = 0
        if not 0 < size <= MOST_KEY_BYTES:
            raise InvalidInput(
                f"{key[:60]!r} is not a key", field="key", hint=f"give a text of 1 to {MOST_KEY_BYTES} bytes"
            )
