"""The QEMU driver keeps what every runtime driver promises, with real guests."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("tests.conformance.runtime_contract")

from tests.conformance.runtime_contract import RuntimePromises


@pytest.mark.host
class TestQemu(RuntimePromises):
    pass
