"""Orders to keep images warm, at the API servers: a node keeps eight booted machines, so a ninth order is refused."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from tests.scenario.api_lab import ApiLab, make_image

from weft.kinds.image import MOST_WARM_IMAGES, ImageStatus
from weft.objects.errors import Forbidden


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[ApiLab]:
    lab = ApiLab(tmp_path)
    yield lab
    lab.close()


def add_image(lab: ApiLab, name: str) -> None:
    lab.client.create(make_image(name))
    envelope = lab.stored(f"/image/default/{name}")
    assert envelope is not None
    status = ImageStatus(phase="Available", sha256=name.rjust(64, "0"), size=1, format="weft", agent=True)
    envelope.status = msgspec.Raw(msgspec.json.encode(status))
    lab.put(envelope)


def warm(lab: ApiLab, name: str, **given: object) -> None:
    """Order it, or take the order back, and let the server's copy of the orders hear of that."""
    lab.client.verb("image", name, "warm", given)
    deadline = time.monotonic() + 10
    while (name in {order.image.name for order in lab.api.orders.list_warm()}) == bool(given.get("off")):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_ninth_image_is_not_kept_warm_until_one_of_the_eight_is_no_more(lab: ApiLab) -> None:
    for number in range(MOST_WARM_IMAGES + 1):
        add_image(lab, f"i{number}")
    for number in range(MOST_WARM_IMAGES):
        warm(lab, f"i{number}")
    with pytest.raises(Forbidden, match="8 images are kept warm already, the most that a node keeps") as refused:
        lab.client.verb("image", "i8", "warm", {})
    assert (refused.value.token, refused.value.field) == ("tooManyObjects", "spec.warm")
    assert "--off" in (refused.value.hint or "")
    assert lab.client.get("image", "i8")["spec"].get("warm") is None
    warm(lab, "i3", memory=256 << 20)  # another order for one of the eight is none more
    warm(lab, "i3", off=True)
    warm(lab, "i8")
