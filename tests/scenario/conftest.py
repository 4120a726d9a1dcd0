"""What holds for every scenario: a password costs nothing; what it costs people is shown in tests/unit/trust."""

from __future__ import annotations

from collections.abc import Iterator

import argon2
import pytest

from weft.trust import passwords


@pytest.fixture(scope="module", autouse=True)
def cheap_passwords() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passwords, "_hasher", argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
        yield
    passwords._dummy.cache_clear()
