from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.objects.errors import InvalidInput
from weft.objects.image.reference import ImageReference, parse_reference

DIGEST = "sha256:" + "0f" * 32


@pytest.mark.parametrize(
    ("text", "registry", "name", "tag", "digest"),
    [
        ("registry.example.com/shop/web:1.4", "registry.example.com", "shop/web", "1.4", ""),
        ("registry.example.com:5000/web", "registry.example.com:5000", "web", "latest", ""),
        ("Registry.Example.com/web", "registry.example.com", "web", "latest", ""),
        ("localhost/web", "localhost", "web", "latest", ""),
        ("localhost:5000/a__b/c-d.e:T_1", "localhost:5000", "a__b/c-d.e", "T_1", ""),
        (f"10.0.0.1/web@{DIGEST}", "10.0.0.1", "web", "", DIGEST),
        (f"[::1]:5000/web:2@{DIGEST}", "[::1]:5000", "web", "2", DIGEST),
        ("docker.io/busybox", "docker.io", "library/busybox", "latest", ""),
        ("docker.io/someone/thing:1", "docker.io", "someone/thing", "1", ""),
    ],
)
def test_names_in_registries(text: str, registry: str, name: str, tag: str, digest: str) -> None:
    assert parse_reference(text) == ImageReference("registry", registry, name, "", tag, digest)


@pytest.mark.parametrize(
    ("text", "place", "path", "tag"),
    [
        ("oci:/srv/images/web:1.4", "layout", "/srv/images/web", "1.4"),
        ("oci:/srv/a:b/web", "layout", "/srv/a:b/web", ""),
        ("oci-archive:/srv/web.tar", "archive", "/srv/web.tar", ""),
    ],
)
def test_files_of_the_node(text: str, place: str, path: str, tag: str) -> None:
    found = parse_reference(text)
    assert (found.place, found.path, found.tag) == (place, path, tag) and str(found) == text


@pytest.mark.parametrize(
    ("text", "says", "hint"),
    [
        ("busybox", "names no registry", "no default registry"),
        ("Shop/web:1", "names no registry", "no default registry"),
        ("shop/web:1", "names no registry", "no default registry"),
        ("", "is not an image", "REGISTRY/NAME:TAG"),
        ("a b", "is not an image", "REGISTRY/NAME:TAG"),
        ("r.example/web:", "is not a tag", "128"),
        ("r.example/web:-x", "is not a tag", "128"),
        ("r.example/Web", "is not a valid image name", "lower-case"),
        ("r.example/../web", "is not a valid image name", "lower-case"),
        ("r.example/web?x=1", "is not a valid image name", "lower-case"),
        ("r.example:99999/web", "is not a registry", "HOST"),
        ("user:pw@r.example/web", "is not a digest", "64"),
        ("r.example/web@sha256:1234", "is not a digest", "64"),
        (f"r.example/web@{DIGEST.upper()}", "is not a digest", "64"),
        (f"r.example/web@sha512:{'0' * 128}", "is not a digest", "sha256"),
        ("docker://r.example/web", "from docker:", "leave docker:// out"),
        ("https://r.example/web", "from https:", "leave https:// out"),
        ("docker-archive:/x.tar", "from docker-archive:", "skopeo copy"),
        ("oci:web:1", "absolute path", "/srv"),
        ("oci:/srv/../etc", "absolute path", "/srv"),
    ],
)
def test_what_can_not_be_meant_is_refused_with_the_field_and_what_to_write(text: str, says: str, hint: str) -> None:
    with pytest.raises(InvalidInput, match=says) as caught:
        parse_reference(text)
    assert caught.value.field == "spec.image" and hint in str(caught.value.hint)


def test_a_registry_is_taken_that_the_configuration_names() -> None:
    assert str(parse_reference("shop/web:1", default_registry="r.example:5000")) == "r.example:5000/shop/web:1"
    assert str(parse_reference("q.example/web", default_registry="r.example")) == "q.example/web:latest"
    assert parse_reference("busybox", default_registry="docker.io").name == "library/busybox"


@given(st.text(max_size=60) | st.from_regex(r"[a-zA-Z0-9./:@_-]{0,40}", fullmatch=True))
def test_any_text_is_refused_or_names_itself_again(text: str) -> None:
    try:
        found = parse_reference(text)
    except InvalidInput:
        return
    assert parse_reference(str(found)) == found
