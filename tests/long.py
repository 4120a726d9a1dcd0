"""The cases of a test that only the soak runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest


def mark_long(values: Sequence[Any], *long: Any) -> list[Any]:
    """``values`` for ``parametrize``; those in ``long`` run in the soak only."""
    return [pytest.param(value, marks=pytest.mark.long if value in long else ()) for value in values]
