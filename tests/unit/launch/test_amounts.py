"""Numbers on the command lines of ``weft server`` and ``weft agent``: one that would do harm is refused where it is typed."""

from __future__ import annotations

import pytest

from weft.launch.agent.configuration import parse_agent
from weft.launch.server.configuration import parse_options

SERVER = ["--state", "/s", "--store", "sqlite"]


@pytest.mark.parametrize(
    ("option", "value", "remedy"),
    [
        ("--most-objects", "0", "give a whole number from 1 to 100000000"),
        ("--most-objects", "many", "give a whole number from 1"),
        ("--writes-per-second", "-1", "give a whole number from 0 to 1000000"),
        ("--user-token-life", "0", "give a duration from 1m to 100 years"),
        ("--audit-keep", "0s", "give a duration from 1h to 100 years"),
        ("--audit-keep", "soon", "write a duration like"),
        ("--audit-most", "0", "give a size of 32 MiB or more"),
        ("--metrics-keep", "0", "give a duration from 1d to 100 years"),
        ("--resume-elsewhere-after", "-1", "write a duration like"),
        ("--listen", "127.0.0.1:api", "write it like 127.0.0.1:8443"),
        ("--gateway", "127.0.0.1:70000", "write it like 127.0.0.1:8443"),
    ],
)
def test_a_number_out_of_range_is_refused_by_the_server_s_option(
    option: str, value: str, remedy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse_options([*SERVER, f"{option}={value}"])
    said = capsys.readouterr().err
    assert f"argument {option}: " in said and value in said and remedy in said


@pytest.mark.parametrize(
    ("option", "value", "remedy"),
    [
        ("--echo-port", "0", "give a whole number from 1 to 65535"),
        ("--vxlan-port", "70000", "give a whole number from 1 to 65535"),
        ("--cpu", "0", "write cores like"),
        ("--memory", "0", "give a size of 64 MiB or more"),
        ("--disk", "-1G", "write a size like"),
    ],
)
def test_a_number_out_of_range_is_refused_by_the_agent_s_option(
    option: str, value: str, remedy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse_agent(["n1", f"{option}={value}"])
    said = capsys.readouterr().err
    assert f"argument {option}: " in said and value in said and remedy in said


def test_defaults_and_numbers_at_the_end_of_their_range_are_taken() -> None:
    options = parse_options([*SERVER, "--writes-per-second", "0", "--most-objects", "1", "--audit-most", "32M"])
    assert (options.writes_per_second, options.most_objects, options.audit_most) == (0, 1, 32 << 20)
    assert (options.user_token_life, options.metrics_keep) == (90 * 86_400.0, 31 * 86_400.0)
    node = parse_agent(["n1", "--cpu", "500m", "--memory", "64M", "--vxlan-port", "65535"])
    assert (node.cpu, node.memory, node.vxlan_port, node.disk) == (0.5, 64 << 20, 65_535, None)
