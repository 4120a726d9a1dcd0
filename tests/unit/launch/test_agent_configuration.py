"""The agent's settings: a flag before a variable, a variable before agent.yaml, and what is wrong is named with its place."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from weft.agent.node.enrolment import FILE
from weft.launch.agent.configuration import parse_agent, show_configuration
from weft.objects.errors import InvalidInput

GIB = 2**30
EDGE = """\
# an edge deployment of NovaCron
resource_limits:
  max_memory_mb: 1024
  max_cpu_cores: 2
  max_storage_gb: 10
offline_mode: true
ai_inference: true
local_decisions: true
"""


def write(folder: Path, text: str) -> list[str]:
    (folder / "agent.yaml").write_text(text)
    return ["n1", "--state", str(folder)]


def show(argv: list[str], environ: dict[str, str]) -> dict[str, tuple[Any, str]]:
    out = io.StringIO()
    assert show_configuration([*argv, "--show-origin", "-o", "json"], environ, out) == 0
    return {row["name"]: (row["value"], row["origin"]) for row in msgspec.json.decode(out.getvalue())}


def test_a_flag_goes_before_a_variable_that_before_the_file_and_all_before_the_default(tmp_path: Path) -> None:
    argv = write(tmp_path, "log_size: 4G\ncpu: 3\nmemory: 2G\ndevices: false\npool: [fast=/mnt/a, slow=/mnt/b]\n")
    environ = {"WEFT_AGENT_CPU": "2", "WEFT_AGENT_MEMORY": "3G", "WEFT_AGENT_PLAIN_REGISTRY": "a:1,b:2", "HOME": "/"}
    options = parse_agent([*argv, "--memory", "4G"], environ)
    assert (options.log_size, options.cpu, options.memory) == (4 * GIB, 2.0, 4 * GIB)
    assert (options.devices, options.echo_port) == (False, 8445)
    assert options.pool == ["fast=/mnt/a", "slow=/mnt/b"] and options.plain_registry == ["a:1", "b:2"]
    shown, file = show([*argv, "--memory", "4G"], environ), tmp_path / "agent.yaml"
    assert shown["memory"] == (4 * GIB, "flag --memory") and shown["cpu"] == (2.0, "environment WEFT_AGENT_CPU")
    assert shown["log_size"] == (4 * GIB, f"file {file}:1") and shown["echo_port"] == (8445, "default")
    assert shown["config"] == (str(file), "default") and shown["state"] == (str(tmp_path), "flag --state")


def test_lists_that_a_flag_gives_replace_those_of_the_file(tmp_path: Path) -> None:
    argv = write(tmp_path, "pool:\n- fast=/mnt/a\n")
    assert parse_agent([*argv, "--pool", "x=/mnt/x", "--pool", "y=/mnt/y"], {}).pool == ["x=/mnt/x", "y=/mnt/y"]


def test_an_agent_without_a_file_has_its_defaults(tmp_path: Path) -> None:
    options = parse_agent(["n1", "--state", str(tmp_path)], {})
    assert (options.node, options.state, options.runtime, options.devices) == ("n1", tmp_path, "qemu", True)
    assert str(parse_agent(["n1"], {}).state) == "/var/lib/weft/n1"


def test_another_file_is_named_by_a_flag_or_a_variable(tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text("log-age: 30d\naddress: 10.0.0.4\n")
    argv = write(tmp_path, "log_age: 1d\n")
    for given, environ in (([*argv, "--config", str(other)], {}), (argv, {"WEFT_AGENT_CONFIG": str(other)})):
        options = parse_agent(given, environ)
        assert (options.log_age, options.underlay_address) == (30 * 86400.0, "10.0.0.4")


def test_the_names_of_an_edge_deployment_of_novacron_mean_settings(tmp_path: Path) -> None:
    options = parse_agent(write(tmp_path, EDGE), {})
    assert (options.memory, options.cpu, options.disk, options.functions) == (GIB, 2.0, 10 * GIB, "auto")


@pytest.mark.parametrize(
    ("text", "why", "hint"),
    [
        ("log_siz: 4G", r"agent.yaml:1: log_siz is not a known setting of the agent", "did you mean log_size?"),
        ("cpu: 1\nlog_size: 4Q", r"agent.yaml:2: log_size: 'Q' is not a unit", ""),
        ("echo_port: 70000", r"agent.yaml:1: echo_port: give a whole number from 1 to 65535", ""),
        ("runtime: xen", r"agent.yaml:1: runtime: must be one of fake, none, qemu, not 'xen'", ""),
        ("devices: maybe", r"agent.yaml:1: devices: must be true or false, not 'maybe'", ""),
        ("cpu: [1]", r"agent.yaml:1: cpu: must be a text or a number", "write one value there"),
        ("local_functions: [a, b]", r"agent.yaml:1: local_functions: must be a text or a number", "one value there"),
        ("address:", r"agent.yaml:1: address: must be a text or a number, not 'None'", "or leave the setting out"),
        ("pool: [a=/a, [b=/b]]", r"agent.yaml:1: pool: must be a text or a number", "one value there"),
        ("state: /x", r"agent.yaml:1: state can't be set in the file", "give --state, or set WEFT_AGENT_STATE"),
        ("config: /x", r"agent.yaml:1: config can't be set in the file", "give --config, or set WEFT_AGENT_CONFIG"),
        ("- cpu", r"agent.yaml: must be one map of settings", ""),
        ("cpu: {", r"agent.yaml:2:1: YAML", ""),
        ("offline_mode: false", r"offline_mode: can't be false", "leave it out, or stop the agent"),
        ("local_decisions: 3", r"local_decisions: must be true or false", ""),
        ("memory: 1G\nresource_limits: {max_memory_mb: 512}", r"memory is given twice", "keep one of them"),
        ("cpu: 1\nresource_limits: {max_ram: 3}", r"agent.yaml:2: resource_limits: must be a map of max_memory_mb", ""),
        (
            "resource_limits:\n  max_memory_mb: -5\n",
            r"agent.yaml:2: resource_limits.max_memory_mb: .*-5",
            "",
        ),
        (
            "local_functions: 127.0.0.1",
            r"agent.yaml:1: local_functions: '127.0.0.1' is not an address and a port",
            "9466",
        ),
        ("cpu: 1\nlocal_functions: 10.0.0.5:9466", r"agent.yaml:2: local_functions: 10.0.0.5 is not this", "_tls"),
        ("local_functions: 127.0.0.1:1\nfunctions: none", r"agent.yaml:1: local_functions: this node runs no", "auto"),
        ("metrics: foo", r"agent.yaml:1: metrics: 'foo' is not an address and a port", "127.0.0.1:9464"),
        ("pool: b", r"agent.yaml:1: pool: write NAME=PATH .* not 'b'", "fast="),
        ("pool: [B=/x]", r"agent.yaml:1: pool: pool 'B' is not a valid name", "a-z"),
        ("run_dir: /" + "a" * 119, r"agent.yaml:1: run_dir: .* more than 96 bytes", "/run/weft"),
        ("log_syslog: here", r"agent.yaml:1: log_syslog: 'here' is not a valid syslog address", "/dev/log"),
        ("log_otlp: here", r"agent.yaml:1: log_otlp: 'here' is not the address of a collector", "4318"),
    ],
)
def test_what_is_wrong_in_the_file_is_named_with_its_line(tmp_path: Path, text: str, why: str, hint: str) -> None:
    with pytest.raises(InvalidInput, match=why) as refused:
        parse_agent(write(tmp_path, text + "\n"), {})
    assert hint in (refused.value.hint or "")


@pytest.mark.parametrize(
    ("environ", "why"),
    [
        ({"WEFT_AGENT_LOG_SIZ": "4G"}, "WEFT_AGENT_LOG_SIZ is not a known variable of the agent"),
        ({"WEFT_AGENT_CPU": "many"}, "WEFT_AGENT_CPU: "),
        ({"WEFT_AGENT_CONFIG": "/none.yaml"}, "WEFT_AGENT_CONFIG /none.yaml: there is no such file"),
        ({"WEFT_AGENT_METRICS": "foo"}, "WEFT_AGENT_METRICS: 'foo' is not an address and a port"),
    ],
)
def test_a_variable_that_is_wrong_is_named(tmp_path: Path, environ: dict[str, str], why: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(why)):
        parse_agent(["n1", "--state", str(tmp_path)], environ)


def test_a_flag_that_can_not_be_is_named_and_an_empty_variable_counts_as_none(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="--local-functions: 'x' is not an address"):
        parse_agent(["n1", "--state", str(tmp_path), "--local-functions", "x"], {})
    options = parse_agent(["n1", "--state", str(tmp_path)], {"WEFT_AGENT_MEMORY": "", "WEFT_AGENT_CONFIG": ""})
    assert options.memory is None and options.config is None


def test_a_folder_in_which_no_node_has_joined_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert show_configuration(["brnch"], {}, io.StringIO()) == 0
    assert capsys.readouterr().err == "note: no node has joined in /var/lib/weft/brnch\n"
    joined = {"server": "https://x", "gateway": "x:1", "node": "n1", "node_uid": "u"}
    (tmp_path / FILE).write_bytes(msgspec.json.encode(joined))
    assert show_configuration(["n1", "--state", str(tmp_path)], {}, io.StringIO()) == 0
    assert capsys.readouterr().err == ""


def test_the_table_has_origins_only_where_they_are_wanted(tmp_path: Path) -> None:
    out = io.StringIO()
    show_configuration([*write(tmp_path, "log_size: 4G\n"), "--show-origin"], {}, out)
    first, *rows = out.getvalue().splitlines()
    assert first.split() == ["SETTING", "VALUE", "ORIGIN"]
    (row,) = [row for row in rows if row.startswith("log_size")]
    assert row.split() == ["log_size", "4G", "file", f"{tmp_path}/agent.yaml:1"]
    out = io.StringIO()
    show_configuration(["n1", "--state", str(tmp_path)], {}, out)
    assert out.getvalue().splitlines()[0].split() == ["SETTING", "VALUE"]


def test_a_flag_that_is_misspelt_is_told_in_two_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        show_configuration(["n1", "--show-orign"], {}, io.StringIO())
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: no such option: --show-orign\n  did you mean --show-origin?\n"
    with pytest.raises(SystemExit):
        parse_agent(["n1", "--cpu", "many"], {})
    assert re.fullmatch(r"error: argument --cpu: .*\n  weft agent --help\n", capsys.readouterr().err)
