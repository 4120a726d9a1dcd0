"""What the device gateway's settings say about drivers, and what they are made of."""

from __future__ import annotations

from pathlib import Path

import pytest

from weft.contracts.clock import SystemClock
from weft.drivers.device.fake.driver import FakeDriver
from weft.launch.edge.configuration import read_settings
from weft.launch.edge.drivers import make_drivers
from weft.objects.errors import InvalidInput


def test_devices_at_this_machine_are_allowed_by_the_file_only_if_it_says_so(tmp_path: Path) -> None:
    file = tmp_path / "edge.yaml"
    for text, allowed in (("", False), ("local_devices: true\n", True)):
        file.write_text(f"node_state: {tmp_path}\n{text}")
        settings, _, _ = read_settings(["--config", str(file)], {})
        assert settings.local_devices is allowed
        drivers = make_drivers(FakeDriver(SystemClock()), settings, SystemClock())
        assert {"fake", "modbus"} <= drivers.keys()
    file.write_text(f"node_state: {tmp_path}\nlocal_devices: perhaps\n")
    with pytest.raises(InvalidInput, match="local_devices"):
        read_settings(["--config", str(file)], {})
