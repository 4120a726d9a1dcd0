"""Bandwidth between two namespaces whose link is shaped, by real packets with the kernel's times."""

from __future__ import annotations

import os

import pytest
from tests.host.shaped_lab import ShapedLab

pytestmark = [pytest.mark.host, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]
MEGABITS = 100


def test_trains_find_the_rate_to_which_a_link_is_shaped() -> None:
    lab = ShapedLab()
    try:
        lab.shape(MEGABITS)
        figures = lab.measure(5)
    finally:
        lab.close()
    assert figures
    mbps, at_least = figures[-1]
    assert not at_least and abs(mbps / MEGABITS - 1) <= 0.1, figures
