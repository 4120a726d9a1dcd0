"""The QEMU driver keeps what every runtime driver promises, with real guests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "conformance"))
pytest.register_assert_rewrite("runtime_contract")

from runtime_contract import RuntimePromises


@pytest.mark.host
class TestQemu(RuntimePromises):
    pass
