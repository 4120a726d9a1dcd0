"""What people may say of a pool."""

from __future__ import annotations

import pytest

from weft.kinds.pool import POOL, PoolMarks, PoolSpec, PoolStatus, check_pool, refuse_offered
from weft.objects.envelope import Envelope
from weft.objects.errors import InUse, InvalidInput
from weft.objects.schema import read_strict


def read(**fields: object) -> PoolSpec:
    spec = read_strict(fields, PoolSpec)
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


def test_a_pool_that_nodes_offer_is_not_deleted() -> None:
    def made(*nodes: str) -> Envelope:
        status = PoolStatus(nodes=len(nodes), node_names=list(nodes))
        return POOL.make("fast", PoolSpec(), 0.0, marks=PoolMarks(id="u", pool="fast"), status=status)

    with pytest.raises(InUse, match="pool/fast is offered by n1, n2 and 1 more") as refused:
        refuse_offered(made("n1", "n2", "n3"), 0)
    assert "weft pool set fast --closed" in str(refused.value.hint)
    refuse_offered(made(), 0)  # whose nodes are gone
