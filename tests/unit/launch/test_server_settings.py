"""The settings of the server, from flags, variables and its file."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from weft.contracts.confinement.public_address import PUBLIC_ONLY
from weft.launch.server.configuration import parse_options, show_configuration
from weft.launch.server.main import main
from weft.objects.errors import InvalidInput

TEXT = """\
state: /var/lib/weft/server
listen: [0.0.0.0:8443, "[::1]:8443"]
audit_keep: 30d
fetch-public-only: true
allow_fetch: [127.0.0.0/8]
receivers_allow: ["10.0.0.0/8,192.168.0.0/16"]
"""


def write(folder: Path, text: str = TEXT) -> list[str]:
    (folder / "server.yaml").write_text(text)
    return ["--config", str(folder / "server.yaml")]


def test_a_flag_overrides_a_variable_and_that_the_file(tmp_path: Path) -> None:
    environ = {"WEFT_SERVER_AUDIT_KEEP": "40d", "WEFT_SERVER_WRITES_PER_SECOND": "7", "WEFT_SERVER_METRICS": "off"}
    options = parse_options([*write(tmp_path), "--audit-keep", "50d"], environ)
    assert (options.audit_keep, options.writes_per_second, options.metrics) == (50 * 86_400.0, 7, "off")
    assert options.listen == ["0.0.0.0:8443", "[::1]:8443"] and options.gateway == ["127.0.0.1:8444"]
    assert options.allow_fetch == ["127.0.0.0/8", PUBLIC_ONLY]
    assert len(options.receivers_allow) == 2
    assert parse_options([*write(tmp_path), "--listen", "127.0.0.1:1"], {}).listen == ["127.0.0.1:1"]


def test_what_is_in_force_is_shown_with_its_place(tmp_path: Path) -> None:
    out = io.StringIO()
    show_configuration(["--show-origin", *write(tmp_path), "--most-objects", "9"], {"WEFT_SERVER_LOG_AGE": "1d"}, out)
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in out.getvalue().splitlines()}
    assert rows["audit_keep"] == f"30d file {tmp_path / 'server.yaml'}:3"
    assert rows["most_objects"] == "9 flag --most-objects" and rows["log_age"] == "1d environment WEFT_SERVER_LOG_AGE"
    assert rows["user_token_life"] == "90d default"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("audit_keep: soon\n", "server.yaml:1: audit_keep: "),
        ("audit_kept: 30d\n", "did you mean audit_keep?"),
        ("state: /s\ntraces: nowhere\n", "server.yaml:2: traces: "),
        ("state: /s\nnetwork: 10.0.0.0/40\n", "server.yaml:2: network: "),
        ("state: /s\nstore: mysql\n", "server.yaml:2: store: "),
        ("config: /other\n", "can't be set in the file"),
        ("audit_keep: 30d\n", "the folder for its data is missing"),
    ],
)
def test_what_cannot_be_is_refused_with_its_line_and_the_remedy(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        parse_options(write(tmp_path, text), {})
    assert said in f"{refused.value.message} {refused.value.hint}"


def test_a_file_that_is_not_there_is_refused_only_if_somebody_named_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weft.launch.server.configuration.FILE", tmp_path / "absent")
    assert parse_options(["--state", "/s"], {}).audit_keep == 365 * 86_400.0
    assert main(["--state", "/s", "--config", str(tmp_path / "absent")]) == 2
    assert "absent: there is no such file" in capsys.readouterr().err


def test_what_has_no_effect_beside_the_other_settings_is_named(tmp_path: Path) -> None:
    given = [*write(tmp_path, 'state: /none\nmetrics: "off"\nalert_interval: 5s\n'), "--store-quota", "1G"]
    assert parse_options(given, {"WEFT_SERVER_OIDC_CLIENT": "lab"}).unused == [
        "--store-quota: has no effect: only an etcd of the server's own has a quota of weft's",
        f"{tmp_path}/server.yaml:3: alert_interval: has no effect: no alert is evaluated: --metrics is off",
        "WEFT_SERVER_OIDC_CLIENT: has no effect: --oidc-issuer is not given",
    ]
    assert parse_options(["--state", "/none", "--store", "members", "--store-quota", "1G"], {}).unused == []
