"""What readers of some projects alone see of objects that are about all of them."""

from __future__ import annotations

import msgspec

from weft.api.object.narrowing import narrow
from weft.kinds.cluster import CLUSTER


def test_the_age_of_other_projects_points_is_not_shown_to_a_reader_of_one_project() -> None:
    status = {"phase": "Linked", "lag_seconds": 12.0, "rpo_seconds": 30.0}
    seen = msgspec.json.decode(narrow(CLUSTER, msgspec.json.encode({"name": "west", "spec": {}, "status": status})))
    assert seen == {"name": "west", "spec": {}, "status": {"phase": "Linked"}}
