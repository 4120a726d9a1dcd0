"""Functions at the API servers: their code comes first, and is what its digest says; nodes get it by ticket; publish counts."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.scenario.api.test_api_requests import converse
from tests.scenario.api_lab import ApiLab, make_image

from weft.client import Client
from weft.client.answer import raise_problem
from weft.client.function_code import has_code, upload_code
from weft.kinds.function import FunctionStatus
from weft.objects.errors import (
    Forbidden,
    IllegalTransition,
    InUse,
    InvalidInput,
    NotAuthenticated,
    NotFound,
    TooLarge,
    Unavailable,
    WeftError,
)
from weft.trust.tickets import sign_blob_ticket, sign_ticket, verify_ticket


def make_zip(text: str = "def handler(event, context): return event") -> tuple[str, bytes]:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("app.py", text)
    return hashlib.sha256(out.getvalue()).hexdigest(), out.getvalue()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[ApiLab]:
    made = ApiLab(tmp_path)
    yield made
    made.close()


def make_function(digest: str, name: str = "thumb", **spec: Any) -> dict[str, Any]:
    return {"kind": "function", "name": name, "spec": {"code": digest, "handler": "app.handler", **spec}}


def make_ready(lab: ApiLab, name: str = "thumb") -> None:
    """As the gateway says it."""
    envelope = lab.stored(f"/function/default/{name}")
    assert envelope is not None
    status = FunctionStatus(phase="Ready", observed_generation=envelope.generation)
    envelope.status = msgspec.Raw(msgspec.json.encode(status))
    lab.put(envelope)


def test_a_function_needs_its_code_first(lab: ApiLab) -> None:
    digest, data = make_zip()
    with pytest.raises(NotFound) as caught:
        lab.client.create(make_function(digest))
    assert caught.value.token == "codeNotFound"
    assert not has_code(lab.client, digest)
    upload_code(lab.client, digest, data)
    upload_code(lab.client, digest, data)
    assert has_code(lab.client, digest)
    assert (lab.folder / "images" / "code" / digest).read_bytes() == data
    assert lab.client.create(make_function(digest))["spec"]["runtime"] == "python3.11"
    other, more = make_zip("handler = print")
    with pytest.raises(NotFound):
        lab.client.patch("function", "thumb", {"spec": {"code": other}})
    upload_code(lab.client, other, more)
    assert lab.client.patch("function", "thumb", {"spec": {"code": other}})["generation"] == 2


def shop_of(lab: ApiLab) -> Client:
    lab.client.create({"kind": "project", "name": "shop"})
    return Client(msgspec.structs.replace(lab.client.context, project="shop"))


def test_who_knows_the_digest_of_another_project_s_code_has_it_only_by_uploading_it(lab: ApiLab) -> None:
    digest, data = make_zip()
    upload_code(lab.client, digest, data)
    lab.client.create(make_function(digest))
    shop = shop_of(lab)
    assert not has_code(shop, digest)
    apply = {"objects": [{**make_function(digest), "project": "shop"}]}
    batch = "/v1/projects/shop/functions:batch"
    for refuse in (
        lambda: shop.create(make_function(digest)),
        lambda: shop.put(make_function(digest)),
        lambda: raise_problem(shop.http.request("POST", "/v1/apply", apply)),
    ):
        with pytest.raises(WeftError) as caught:
            refuse()
        assert "no code with the digest" in str(caught.value) and "project shop" in str(caught.value)
    (result,) = shop.http.request("POST", batch, {"objects": [make_function(digest)]}).json()["results"]
    assert result["error"]["reason"] == "codeNotFound"
    with pytest.raises(InvalidInput):  # it is there, and what comes must still be it
        upload_code(shop, digest, data[:-1])
    assert not has_code(shop, digest)
    upload_code(shop, digest, data)
    assert has_code(shop, digest) and shop.create(make_function(digest))["spec"]["code"] == digest
    path = lab.folder / "images" / "code"
    assert (path / digest).read_bytes() == data


def test_code_is_a_project_s_while_a_function_or_a_version_there_names_it(lab: ApiLab) -> None:
    """As in a store that an older weft wrote, or in one that was restored: nothing says where it was uploaded."""
    (digest, data), (other, more) = make_zip(), make_zip("handler = print")
    shop = shop_of(lab)
    upload_code(shop, digest, data)  # so that the file stays whatever else goes
    for one, body in ((digest, data), (other, more)):
        upload_code(lab.client, one, body)
    lab.client.create(make_function(digest))
    make_ready(lab)
    lab.client.verb("function", "thumb", "publish", {})
    project = lab.client.get("project", "default")
    (lab.folder / "images" / "code" / f"{digest}.{project['uid']}").unlink()
    lab.client.create(make_function(digest, "second"))
    lab.client.delete("function", "second")
    lab.client.patch("function", "thumb", {"spec": {"code": other}})
    assert has_code(lab.client, digest), "its version has it"
    lab.client.delete("functionversion", "thumb-1")
    assert not has_code(lab.client, digest)
    lab.client.delete("function", "thumb")
    assert has_code(lab.client, other), "it was uploaded here a moment ago"


def test_a_project_that_takes_the_name_of_a_deleted_one_has_none_of_its_uploads(lab: ApiLab) -> None:
    digest, data = make_zip()
    shop = shop_of(lab)
    upload_code(shop, digest, data)
    lab.client.delete("project", "shop")
    assert not has_code(shop_of(lab), digest)


def test_a_kill_between_the_file_and_its_record_leaves_code_that_is_uploaded_again(
    lab: ApiLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("killed here")

    digest, data = make_zip()
    with monkeypatch.context() as patched:
        patched.setattr("weft.api.code.upload.note_upload", fail)
        with pytest.raises(Unavailable):
            upload_code(lab.client, digest, data)
    assert not has_code(lab.client, digest)
    upload_code(lab.client, digest, data)
    assert has_code(lab.client, digest)


def test_what_is_named_again_does_not_go_meanwhile(lab: ApiLab) -> None:
    digest, data = make_zip()
    upload_code(lab.client, digest, data)
    path = lab.folder / "images" / "code" / digest
    os.utime(path, (100, 100))
    lab.client.create(make_function(digest))
    assert path.stat().st_mtime > time.time() - 60


def test_only_good_zips_under_their_own_digest_are_kept(lab: ApiLab) -> None:
    digest, data = make_zip()
    no_zip = b"nothing of the kind"
    for name, body in ((digest, data[:-1]), (digest, b""), (hashlib.sha256(no_zip).hexdigest(), no_zip)):
        with pytest.raises(InvalidInput) as caught:
            upload_code(lab.client, name, body)
        assert caught.value.token == "badCode"
    with pytest.raises(InvalidInput, match="'nonsense' is not a digest"):
        upload_code(lab.client, "nonsense", data)
    with pytest.raises(NotFound):
        raise_problem(lab.client.http.request("PUT", "/v1/projects/default/code/nonsense", data))
    with pytest.raises(NotFound):
        upload_code(Client(lab.context, project="nowhere"), digest, data)
    with pytest.raises(TooLarge):
        upload_code(lab.client, "0" * 64, bytes(50 * 1024 * 1024 + 1))
    folder = lab.folder / "images" / "code"
    assert list(folder.iterdir() if folder.exists() else ()) == []


def test_code_that_comes_in_pieces_counts_as_a_whole(lab: ApiLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has said how long it will be: a bound on each piece alone would let it fill the disk."""
    monkeypatch.setattr("weft.api.code.upload.MOST_BYTES", 300_000)
    digest = "0" * 64
    head = (
        f"PUT /v1/projects/default/code/{digest} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        f"Authorization: Bearer {lab.context.token}\r\nTransfer-Encoding: chunked\r\n\r\n"
    ).encode()
    chunk = b"186a0\r\n" + bytes(100_000) + b"\r\n"
    assert converse(lab, head + 3 * chunk + b"0\r\n\r\n").startswith(b"HTTP/1.1 400 "), "as large as may be: no zip"
    assert converse(lab, head + 4 * chunk + b"0\r\n\r\n").startswith(b"HTTP/1.1 413 ")
    folder = lab.folder / "images" / "code"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700 and list(folder.iterdir()) == []


def test_who_only_reads_uploads_nothing(lab: ApiLab) -> None:
    digest, data = make_zip()
    viewer = lab.with_token(use="access", subject="eve", role="viewer")
    with pytest.raises(Forbidden):
        upload_code(viewer, digest, data)
    with pytest.raises(Forbidden):
        viewer.verb("function", "thumb", "invoke", {})


def test_a_node_gets_what_its_own_ticket_names(lab: ApiLab) -> None:
    digest, data = make_zip()
    upload_code(lab.client, digest, data)
    (lab.folder / "images" / ("ab" * 32)).write_bytes(b"base")
    node, other = lab.join("n1"), lab.join("n2")
    key, now = lab.settings.ticket_key, time.time()

    def fetch(who: Any, blob: str, ticket: str | None) -> bytes:
        answer = who.client.http.request("GET", f"/v1/blobs/{blob}" + (f"?ticket={ticket}" if ticket else ""))
        raise_problem(answer)
        return bytes(answer.body)

    good = sign_blob_ticket(key, digest, node.uid, now)
    assert fetch(node, digest, good) == data
    assert fetch(node, "ab" * 32, sign_blob_ticket(key, "ab" * 32, node.uid, now)) == b"base"
    for who, blob, ticket, error in (
        (other, digest, good, Forbidden),
        (node, "ab" * 32, good, Forbidden),
        (node, digest, None, Forbidden),
        (node, digest, sign_blob_ticket(key, digest, node.uid, now - 86400), NotAuthenticated),
        (node, digest, sign_blob_ticket(b"x" * 32, digest, node.uid, now), NotAuthenticated),
        (node, digest, sign_ticket(key, {"verb": "exec", "node_uid": node.uid, "expires": now + 60}), Forbidden),
    ):
        with pytest.raises(error):
            fetch(who, blob, ticket)


def test_versions_count_up_and_are_never_given_twice(lab: ApiLab) -> None:
    digest, data = make_zip()
    upload_code(lab.client, digest, data)
    lab.client.create(make_function(digest))
    with pytest.raises(IllegalTransition):
        lab.client.verb("function", "thumb", "publish")
    make_ready(lab)
    first = lab.client.verb("function", "thumb", "publish", {"description": "the first"})
    assert (first["name"], first["spec"]["number"], first["owner"]["name"]) == ("thumb-1", 1, "thumb")
    make_ready(lab)
    assert lab.client.verb("function", "thumb", "publish")["name"] == "thumb-2"
    lab.client.delete("functionversion", "thumb-2")
    make_ready(lab)
    assert lab.client.verb("function", "thumb", "publish")["name"] == "thumb-3"
    assert lab.client.get("function", "thumb")["actions"]["published"] == 3
    with pytest.raises(Forbidden):
        lab.client.patch("functionversion", "thumb-1", {"spec": {"handler": "other.handler"}})
    with pytest.raises(Forbidden):
        lab.client.create({"kind": "functionversion", "name": "thumb-9", "spec": first["spec"]})


def test_a_publish_that_comes_twice_makes_one_version(lab: ApiLab) -> None:
    digest, data = make_zip()
    upload_code(lab.client, digest, data)
    lab.client.create(make_function(digest))
    make_ready(lab)
    path, headers = "/v1/projects/default/functions/thumb:publish", {"Idempotency-Key": "once"}
    answers = [lab.client.http.request("POST", path, {}, headers=headers).json() for _ in range(2)]
    assert [answer["name"] for answer in answers] == ["thumb-1", "thumb-1"]
    assert len(lab.client.list("functionversion").items) == 1


def test_a_ticket_to_invoke_names_the_function_and_no_node(lab: ApiLab) -> None:
    digest, data = make_zip()
    upload_code(lab.client, digest, data)
    uid = lab.client.create(make_function(digest))["uid"]
    given = lab.client.verb("function", "thumb", "invoke", {"qualifier": "3", "tail": True})
    claims = verify_ticket(lab.settings.ticket_key, given["ticket"], time.time())
    assert claims["workload"] == {"kind": "function", "project": "default", "name": "thumb", "uid": uid}
    assert (claims["verb"], claims["node_uid"], claims["allocation"]) == ("invoke", "", "")
    assert claims["input"] == {"qualifier": "3", "client_context": "", "tail": True, "timeout": 0.0, "later": False}
    with pytest.raises(NotFound):
        lab.client.verb("function", "none", "invoke", {})


def test_names_leave_room_for_a_versions_number(lab: ApiLab) -> None:
    digest, data = make_zip()
    upload_code(lab.client, digest, data)
    with pytest.raises(InvalidInput):
        lab.client.create(make_function(digest, name="f" * 57))
    lab.client.create(make_function(digest, name="f" * 56))


def test_an_alias_names_versions_that_there_are_and_keeps_them(lab: ApiLab) -> None:
    digest, data = make_zip()
    upload_code(lab.client, digest, data)
    lab.client.create(make_function(digest))
    with pytest.raises(NotFound):
        lab.client.patch("function", "thumb", {"spec": {"aliases": {"prod": 1}}})
    for _ in range(2):
        make_ready(lab)
        lab.client.verb("function", "thumb", "publish")
    set_ = lab.client.patch("function", "thumb", {"spec": {"aliases": {"prod": 1, "next": {"1": 0.9, "2": 0.1}}}})
    assert set_["spec"]["aliases"] == {"prod": {"1": 1.0}, "next": {"1": 0.9, "2": 0.1}}
    with pytest.raises(InUse):
        lab.client.delete("functionversion", "thumb-2")
    lab.client.patch("function", "thumb", {"spec": {"aliases": {"next": None}}})
    lab.client.delete("functionversion", "thumb-2")
    with pytest.raises(NotFound):
        lab.client.patch("function", "thumb", {"spec": {"aliases": {"prod": 2}}})


def test_who_gets_dead_letters_must_be_there_and_stays(lab: ApiLab) -> None:
    digest, data = make_zip()
    upload_code(lab.client, digest, data)
    with pytest.raises(NotFound):
        lab.client.create(make_function(digest, dead_letter="graves"))
    lab.client.create(make_function(digest, name="graves"))
    lab.client.create(make_function(digest, dead_letter="graves"))
    with pytest.raises(InUse):
        lab.client.delete("function", "graves")


def test_the_image_of_a_runtime_stays_while_functions_of_any_project_use_it(lab: ApiLab) -> None:
    digest, data = make_zip()
    shop = shop_of(lab)
    for client in (lab.client, shop):
        upload_code(client, digest, data)
    lab.client.create(make_image("python3-11"))
    lab.client.create(make_function(digest))
    shop.create(make_function(digest, "till"))
    shop.create({"kind": "function", "name": "boxed", "spec": {"image": "r.test/x:1", "isolation": "vm"}})
    shop.create({"kind": "function", "name": "plain", "spec": {"image": "r.test/x:1"}})
    with pytest.raises(InUse) as caught:
        lab.client.delete("image", "python3-11")
    assert sorted(caught.value.details["by"]) == ["function/boxed -p shop", "function/thumb", "function/till -p shop"]
    lab.client.delete("function", "thumb")
    shop.create(make_image("python3-11"))  # its own comes first
    lab.client.delete("image", "python3-11")
    with pytest.raises(InUse, match="function/till"):
        shop.delete("image", "python3-11")


def test_the_image_of_a_runtime_stays_while_a_version_uses_it(lab: ApiLab) -> None:
    digest, data = make_zip()
    upload_code(lab.client, digest, data)
    lab.client.create(make_image("python3-11"))
    lab.client.create(make_function(digest))
    make_ready(lab)
    lab.client.verb("function", "thumb", "publish", {})
    lab.client.patch("function", "thumb", {"spec": {"code": "", "runtime": "", "image": "r.test/x:1"}})
    with pytest.raises(InUse, match="functionversion/thumb-1"):
        lab.client.delete("image", "python3-11")


class SlowFile(io.BufferedRandom):
    """A disk that is slower than who sends."""

    def write(self, data: Any) -> int:
        time.sleep(0.003)
        return super().write(data)


def test_code_of_megabytes_comes_whole_however_much_waits_for_a_slow_disk(
    lab: ApiLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sender is quicker: what waits for the API servers is more than a head may have, and comes at once."""
    monkeypatch.setattr(
        "weft.api.code.upload.os.fdopen", lambda descriptor, mode: SlowFile(io.FileIO(descriptor, "r+b"))
    )
    for number in range(2):
        digest, data = make_zip(f"x{number} = '{'x' * 5_000_000}'")
        upload_code(lab.client, digest, data)
        assert (lab.folder / "images" / "code" / digest).stat().st_size == len(data)
