"""What only the soak runs: cases of a test, and most of the examples that hypothesis draws."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import pytest

ALL_EXAMPLES = os.environ.get("WEFT_EXAMPLES") == "all"  # make soak says so
_EVERYDAY = 3  # of so many examples one is drawn each day


def mark_long(values: Sequence[Any], *long: Any) -> list[Any]:
    """``values`` for ``parametrize``; those in ``long`` run in the soak only."""
    return [pytest.param(value, marks=pytest.mark.long if value in long else ()) for value in values]


def mark_seeds(most: int) -> list[Any]:
    """``most`` seeds for ``parametrize``: a part of them each day, the others in the soak only."""
    return mark_long(range(most), *range(-(-most // _EVERYDAY), most))


def examples(most: int) -> int:
    """How many examples of ``most`` are drawn now: all of them in the soak, a part of them every day."""
    return most if ALL_EXAMPLES else -(-most // _EVERYDAY)
