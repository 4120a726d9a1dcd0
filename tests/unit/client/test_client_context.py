"""Finding the context: what is nearest and most explicit wins, and what is missing is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from weft.client.context import Context, find_context, hash_ca, read_context, write_context
from weft.client.tls import make_tls
from weft.objects.errors import InvalidInput, NotFound


def put(path: Path, server: str) -> str:
    write_context(path, Context(server=server))
    return str(path)


def test_the_order_is_flag_file_environment_folder_home(tmp_path: Path) -> None:
    deep = tmp_path / "clone" / "a" / "b"
    deep.mkdir(parents=True)
    home = {"HOME": str(tmp_path / "home")}
    with pytest.raises(NotFound, match="no weft context") as caught:
        find_context(None, home, str(deep))
    assert "weft login" in (caught.value.hint or "")
    put(tmp_path / "home/.config/weft/context.json", "https://home")
    assert find_context(None, home, str(deep)).server == "https://home"
    put(tmp_path / "clone/.weft/context.json", "https://clone")
    assert find_context(None, home, str(deep)).server == "https://clone"
    environment = {**home, "WEFT_SERVER": "https://env", "WEFT_TOKEN": "t", "WEFT_PROJECT": "p"}
    found = find_context(None, environment, str(deep))
    assert (found.server, found.token, found.project) == ("https://env", "t", "p")
    environment["WEFT_CONTEXT"] = put(tmp_path / "named.json", "https://named")
    assert find_context(None, environment, str(deep)).server == "https://named"
    flag = put(tmp_path / "flag.json", "https://flag")
    assert find_context(flag, environment, str(deep)).server == "https://flag"


def test_a_token_in_the_environment_goes_before_one_in_a_file_that_was_found_but_not_given(tmp_path: Path) -> None:
    write_context(tmp_path / ".weft/context.json", Context(server="https://x", ca="pem", token="mine"))
    file = str(tmp_path / ".weft/context.json")
    other = {"HOME": str(tmp_path), "WEFT_TOKEN": "other"}
    assert find_context(None, other, str(tmp_path)) == Context(server="https://x", ca="pem", token="other")
    assert find_context(None, {**other, "WEFT_CONTEXT": file}, "/").token == "other"
    assert find_context(file, other, str(tmp_path)).token == "mine"


def test_the_environment_names_a_ca_by_its_file_or_holds_its_text(tmp_path: Path) -> None:
    text = "-----BEGIN CERTIFICATE-----\nabc\n-----END CERTIFICATE-----\n"
    (tmp_path / "ca.pem").write_text(text)
    for given in (text, str(tmp_path / "ca.pem")):
        assert find_context(None, {"WEFT_SERVER": "https://x", "WEFT_CA": given}).ca == text
    assert find_context(None, {"WEFT_SERVER": "https://x"}).ca == ""


def test_a_context_file_is_private_and_read_as_written(tmp_path: Path) -> None:
    context = Context(server="https://x:1", ca="pem", token="t", project="p")
    write_context(tmp_path / "c.json", context)
    assert read_context(tmp_path / "c.json") == context
    assert (tmp_path / "c.json").stat().st_mode & 0o777 == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["c.json"]


def test_what_can_not_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text("{")
    with pytest.raises(InvalidInput, match=r"c\.json can't be read"):
        find_context(str(tmp_path / "c.json"), {})
    with pytest.raises(NotFound, match="does not exist"):
        find_context(str(tmp_path / "none.json"), {})
    with pytest.raises(InvalidInput, match="WEFT_CA"):
        find_context(None, {"WEFT_SERVER": "https://x", "WEFT_CA": str(tmp_path / "no.pem")})
    with pytest.raises(InvalidInput, match="certificates can't be used"):
        make_tls(Context(server="https://x", ca="nonsense"))


def test_the_digest_of_a_ca_is_of_its_content_not_of_its_text() -> None:
    pem = "-----BEGIN CERTIFICATE-----\nYWJj\n-----END CERTIFICATE-----\n"
    assert hash_ca(pem) == hash_ca(pem.replace("YWJj", "YWJj\n")) and len(hash_ca(pem)) == 64
