"""A digest becomes part of an address only if it is one: in a project's backup it comes from a node."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from weft.client.function_code import has_code, upload_code
from weft.objects.errors import InvalidInput


@pytest.mark.parametrize("digest", ["../../nodes/n1", "aa", "AA" * 32, "aa" * 32 + "?x", "aa" * 32 + "\n", ""])
def test_what_is_no_digest_is_not_asked_for(digest: str) -> None:
    asked: list[object] = []
    client = cast(
        Any, SimpleNamespace(project="shop", http=SimpleNamespace(request=lambda *words, **_: asked.append(words)))
    )
    with pytest.raises(InvalidInput, match="is not a digest"):
        has_code(client, digest)
    with pytest.raises(InvalidInput, match="is not a digest"):
        upload_code(client, digest, b"")
    assert asked == []
