"""What the device gateway's settings say about its cache."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from weft.contracts.clock import SystemClock
from weft.drivers.cache.redis.driver import RedisCache
from weft.drivers.cache.sqlite.driver import SqliteCache
from weft.launch.edge.cache import make_cache, make_publisher
from weft.launch.edge.configuration import read_settings
from weft.launch.process.settings import show_settings
from weft.objects.errors import InvalidInput


def test_a_gateway_has_no_cache_unless_its_settings_say_which(tmp_path: Path) -> None:
    file, clock = tmp_path / "edge.yaml", SystemClock()
    for text, kind in (
        ("", None),
        ("cache: off\n", None),
        ("cache: sqlite\n", SqliteCache),
        ("cache: redis://10.0.0.5\n", RedisCache),
        ("cache: unix:///run/redis.sock\n", RedisCache),
    ):
        file.write_text(f"node_state: {tmp_path}\n{text}")
        settings, _, _ = read_settings(["--config", str(file)], {})
        cache = make_cache(settings, clock)
        assert type(cache) is (kind or type(None))
        assert (make_publisher(cache, settings, clock, "n1") is None) is (kind is None)


def test_a_cache_s_settings_come_from_the_strongest_place_and_say_which(tmp_path: Path) -> None:
    file, password = tmp_path / "edge.yaml", tmp_path / "password"
    password.write_text("s3cret")
    file.write_text(f"node_state: {tmp_path}\ncache: sqlite\ncache_seconds: 30\ncache_password: {password}\n")
    settings, origins, _ = read_settings(
        ["--config", str(file), "--cache-seconds", "90"], {"WEFT_EDGE_CACHE": "redis://10.0.0.5/2"}
    )
    assert (settings.cache, settings.cache_seconds) == ("redis://10.0.0.5/2", 90)
    out = io.StringIO()
    show_settings(origins, out)
    rows = {line.split()[0]: line.split(maxsplit=2)[2] for line in out.getvalue().splitlines()}
    assert rows["cache"] == "environment WEFT_EDGE_CACHE" and rows["cache_seconds"] == "flag --cache-seconds"
    assert rows["cache_password"] == f"file {file}:4" and "s3cret" not in out.getvalue()


def test_a_wrong_setting_of_the_cache_is_refused_with_its_name_and_the_remedy(tmp_path: Path) -> None:
    file, present = tmp_path / "edge.yaml", tmp_path / "present"
    present.write_text("x")
    for text, words in (
        ("cache: memory", "cache: .*is not an address of a Redis; write like redis://.*or give sqlite or off"),
        ("cache: redis://u:hidden@10.0.0.5", "cache: .*write the password into a file"),
        ("cache: redis://10.0.0.5:99999", "cache: .*at most 65535"),
        ("cache_seconds: 1", "cache_seconds: give a whole number from 3"),
        (f"cache_password: {present}", "cache_password is given, but cache is off"),
        (f"cache: sqlite\ncache_password: {present}", "but cache is sqlite"),
        (f"cache: redis://a\ncache_authority: {present}", "cache_authority is given, but cache is redis://a"),
        (f"cache: redis://a\ncache_password: {present}-absent", "cache_password: .*must be a file"),
        ("cache: redis://edge@a", "cache_password is missing"),
        ("cash: sqlite", "cash is not a known setting"),
    ):
        file.write_text(f"node_state: {tmp_path}\n{text}\n")
        with pytest.raises(InvalidInput, match=words) as refused:
            read_settings(["--config", str(file)], {})
        assert "hidden" not in str(refused.value)
