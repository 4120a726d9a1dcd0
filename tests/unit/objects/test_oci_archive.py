"""Archives of container images: known by what they hold, never believed."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from weft.controllers.image.file import ImageFacts, inspect
from weft.images.busybox.build import pack_image
from weft.objects.errors import DriverFailed
from weft.objects.image.oci_archive import MOST_MEMBERS, read_archive

DIGEST = f"sha256:{'ab' * 32}"
BLOB = f"blobs/sha256/{'ab' * 32}"


def pack(members: dict[str, bytes], odd: str = "") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size, member.type = len(data), tarfile.SYMTYPE if name == odd else tarfile.REGTYPE
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


def index(*digests: str) -> bytes:
    return json.dumps({"manifests": [{"digest": digest, "size": 1} for digest in digests]}).encode()


def read(archive: bytes) -> str:
    return read_archive(io.BytesIO(archive), len(archive))


def refusal(archive: bytes) -> str:
    with pytest.raises(DriverFailed) as caught:
        read(archive)
    assert caught.value.token == "notAnImage"
    return f"{caught.value.message} {caught.value.hint}"


def test_an_archive_tells_the_one_image_that_it_holds_wherever_its_index_lies(tmp_path: Path) -> None:
    whole = {BLOB: b"{}", "./index.json": index(DIGEST, DIGEST), "./oci-layout": b"{}"}
    assert read(pack(whole)) == DIGEST
    (tmp_path / "x").write_bytes(pack_image(pack({"bin/true": b"#"})))
    facts = inspect(tmp_path / "x")
    assert facts == ImageFacts("oci", 0, False, facts.digest) and facts.digest.startswith("sha256:")


@pytest.mark.parametrize(
    ("members", "odd", "words"),
    [
        ({"manifest.json": b"[]", "a/layer.tar": b""}, "", "docker-archive:FILE oci-archive:OTHER"),
        ({"etc/passwd": b""}, "", "neither a bundle nor a container image"),
        ({"oci-layout": b"", "index.json": b"x"}, "index.json", "neither"),
        ({"oci-layout": b"", "index.json": b"["}, "", "index.json"),
        ({"oci-layout": b"", "index.json": b"[" * 5000}, "", "index.json"),
        ({"oci-layout": b"", "index.json": index(DIGEST, f"sha256:{'cd' * 32}"), BLOB: b""}, "", "holds 2 images"),
        ({"oci-layout": b"", "index.json": index()}, "", "holds 0 images"),
        ({"oci-layout": b"", "index.json": index(DIGEST)}, "", "lacks the image"),
        ({"oci-layout": b"", "index.json": index("sha256:../../etc/passwd")}, "", "lacks the image"),
        ({"oci-layout": b"", "index.json": b" " * (2 << 20)}, "", "too long"),
    ],
)
def test_what_holds_no_single_image_is_refused_with_the_way_out(
    members: dict[str, bytes], odd: str, words: str
) -> None:
    assert words in refusal(pack(members, odd))


def test_one_that_is_cut_or_has_no_end_is_refused() -> None:
    whole = pack({"oci-layout": b"", "index.json": index(DIGEST), BLOB: bytes(4096)})
    assert "longer than the archive" in refusal(whole[: len(whole) // 4])
    assert "more than" in refusal(pack({f"blobs/{n}": b"" for n in range(MOST_MEMBERS + 1)}))
