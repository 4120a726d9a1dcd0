"""What the device gateway's settings say about drivers, and what they are made of."""

from __future__ import annotations

import subprocess
import sys
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
        assert {"fake", "modbus", "coap", "opcua"} <= drivers.keys()
    for wrong in ("local_devices: perhaps", "coap_hosts: a b", "coap_hosts: [1]"):
        file.write_text(f"node_state: {tmp_path}\n{wrong}\n")
        with pytest.raises(InvalidInput, match=wrong.partition(":")[0]):
            read_settings(["--config", str(file)], {})


def test_hosts_are_a_list_in_the_file_or_words_with_commas(tmp_path: Path) -> None:
    file = tmp_path / "edge.yaml"
    file.write_text(f"node_state: {tmp_path}\ncoap_hosts: [10.0.0.7, '[fd00::7]:5683']\n")
    assert read_settings(["--config", str(file)], {})[0].coap_hosts == ["10.0.0.7", "[fd00::7]:5683"]
    assert read_settings(["--config", str(file), "--coap-hosts", "a,b:1"], {})[0].coap_hosts == ["a", "b:1"]


def test_a_host_that_no_device_can_be_at_is_refused_with_its_setting(tmp_path: Path) -> None:
    file = tmp_path / "edge.yaml"
    for name, wrong in (
        ("coap_hosts", "192.168.7.30:99999"),
        ("coap_hosts", "192.168.7.30/1"),
        ("coap_hosts", "coap://192.168.7.30"),
        ("coap_hosts", "a:b:c"),
        ("opcua_hosts", "[::1"),
        ("opcua_hosts", "opc.tcp://10.0.0.1"),
    ):
        file.write_text(f"node_state: {tmp_path}\n{name}: '{wrong}'\n")
        with pytest.raises(InvalidInput, match=f"{name}.*write like|{name}.*65535"):
            read_settings(["--config", str(file)], {})
    assert read_settings(["--node-state", "n", "--opcua-hosts", "a:4840/x/y"], {})[0].opcua_hosts == ["a:4840/x/y"]


def test_the_gateway_may_open_a_file_for_each_device_where_its_shell_gives_few() -> None:
    program = (
        "import resource\n"
        "_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))\n"
        "from weft.launch.edge.main import MOST_FILES, allow_files\n"
        "allow_files()\n"
        "assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == min(MOST_FILES, hard)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
