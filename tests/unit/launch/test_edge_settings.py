"""What the device gateway refuses before it makes or starts anything."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from weft.launch.edge.configuration import read_settings
from weft.launch.edge.main import main
from weft.objects.errors import InvalidInput


def test_a_certificate_and_a_key_that_no_broker_could_use_are_refused_with_their_names(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("x")
    pairs = []
    for name in ("a", "b"):
        pairs.append((tmp_path / f"{name}.crt", tmp_path / f"{name}.key"))
        words = f"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=edge -out {pairs[-1][0]} -keyout"
        subprocess.run(["openssl", *words.split(), str(pairs[-1][1])], check=True, capture_output=True)
    (good, its_key), (_, other_key) = pairs
    for certificate, key, words in (
        (text, text, f"certificate: {text} has no certificate in PEM form"),
        (good, text, f"key: {text} is not a key in PEM form without a password"),
        (good, other_key, f"key: {other_key} is not the key of {good}"),
    ):
        with pytest.raises(InvalidInput, match=words) as refused:
            read_settings(["--node-state", "/n", "--certificate", str(certificate), "--key", str(key)], {})
        assert refused.value.hint
    read_settings(["--node-state", "/n", "--certificate", str(good), "--key", str(its_key)], {})
    with pytest.raises(InvalidInput, match=f"cache_authority: {text} has no certificate"):
        read_settings(["--node-state", "/n", "--cache", "rediss://a", "--cache-authority", str(text)], {})


def test_a_node_that_never_joined_is_refused_and_nothing_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["gateway", "--node-state", str(tmp_path / "n1")]) == 3
    assert "weft token create --join" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_strangers_announce_themselves_nowhere_unless_an_address_of_their_own_is_given(tmp_path: Path) -> None:
    file = tmp_path / "edge.yaml"
    for text, address in (("", ""), ("births: false\n", ""), ("births: 127.0.0.1:1884\n", "127.0.0.1:1884")):
        file.write_text(f"node_state: /n\n{text}")
        settings, _, _ = read_settings(["--config", str(file)], {})
        assert settings.births == address
    for text, words in (
        ("true", "strangers announce themselves at a broker of their own: give its ADDRESS:PORT"),
        ("127.0.0.1:1883", "births: 127.0.0.1:1883 is where listen already is"),
    ):
        file.write_text(f"node_state: /n\nbirths: {text}\n")
        with pytest.raises(InvalidInput, match=words) as refused:
            read_settings(["--config", str(file)], {})
        assert refused.value.field == "births"
