"""What people may say of a pool."""

from __future__ import annotations

import pytest

from weft.kinds.pool import PoolSpec, check_pool
from weft.objects.errors import InvalidInput
from weft.objects.schema import read_strict


def read(**fields: object) -> PoolSpec:
    spec = read_strict({"id": "u", "pool": "shared", **fields}, PoolSpec)
    check_pool(spec)
    return spec


def test_shares_are_read_as_people_write_them() -> None:
    spec = read(overcommit="150%", alarm="70%")
    assert (spec.overcommit, spec.alarm) == (1.5, 0.7)
    assert (read().overcommit, read().alarm) == (None, 0.8)


@pytest.mark.parametrize("field", ["overcommit", "alarm"])
@pytest.mark.parametrize("value", [-1, 0, 1e9, "nan"])
def test_a_share_that_is_none_is_refused(field: str, value: object) -> None:
    with pytest.raises(InvalidInput) as refused:
        read(**{field: value})
    assert refused.value.field == f"spec.{field}"
