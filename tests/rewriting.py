"""In a fresh clone each worker would rewrite the assertions of all tests, which takes it half a minute: so each does its part, and
takes the others' from disk.

pytest keeps what it rewrote, but has no way to ask for it before the modules are loaded.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from _pytest.assertion import rewrite

TESTS = Path(__file__).parent


def rewrite_part(config: pytest.Config, number: int, count: int) -> None:
    """The part ``number`` of ``count``, of those that are new or have changed."""
    if sys.dont_write_bytecode or config.getvalue("assertmode") != "rewrite":
        return
    state = config.stash[rewrite.assertstate_key]
    for test in sorted(TESTS.rglob("test_*.py"))[number::count]:
        folder = rewrite.get_cache_dir(test)
        kept = folder / (test.name.removesuffix(".py") + rewrite.PYC_TAIL)
        if rewrite._read_pyc(test, kept) is None and rewrite.try_makedirs(folder):
            digest, code = rewrite._rewrite_test(test, config)
            rewrite._write_pyc(state, code, digest, kept)
