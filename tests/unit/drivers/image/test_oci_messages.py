"""What an image's errors say: which image, what is wrong with it, and nothing twice."""

from __future__ import annotations

import pytest

from weft.drivers.image.oci.store import name_image
from weft.objects.errors import NotAuthenticated, NotFound, WeftError
from weft.objects.image.reference import parse_reference


@pytest.mark.parametrize(
    ("reference", "problem", "message"),
    [
        (
            "oci-archive:/srv/a.tar",
            NotAuthenticated("/srv/a.tar: it is not readable by all users of the node"),
            "image oci-archive:/srv/a.tar: it is not readable by all users of the node",
        ),
        (
            "oci:/srv/web:1.4",
            NotFound("/srv/web has no image with the tag 1.4", reason="imageGone"),
            "image oci:/srv/web:1.4: has no image with the tag 1.4",
        ),
        (
            "registry.example/web:1",
            NotFound("registry registry.example: gone"),
            "image registry.example/web:1: registry registry.example: gone",
        ),
    ],
)
def test_an_error_names_its_image_once(reference: str, problem: WeftError, message: str) -> None:
    named = name_image(problem, parse_reference(reference))
    assert (named.message, named.token, type(named)) == (message, problem.token, type(problem))
