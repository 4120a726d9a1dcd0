"""What the API servers say to people who move a VM: what keeps it from moving, and what did until a moment ago."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.scenario.api_lab import ApiLab, make_image, make_vm

from weft.kinds.migration import MigrationStatus
from weft.kinds.parts.workload import WorkloadStatus

PATH = "/v1/projects/default/vms/web:migrate"


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[ApiLab]:
    lab = ApiLab(tmp_path)
    lab.client.create(make_image())
    lab.client.create(make_vm("web"))
    tell(lab, "/vm/default/web", WorkloadStatus(phase="Running", node="n1"))
    yield lab
    lab.close()


def tell(lab: ApiLab, key: str, status: msgspec.Struct) -> None:
    """What the object's controller says of it."""
    envelope = lab.stored(key)
    assert envelope is not None
    envelope.status = msgspec.Raw(msgspec.json.encode(status))
    lab.put(envelope)


def migrate(lab: ApiLab, key: str) -> tuple[int, dict[str, Any]]:
    answer = lab.client.http.request("POST", PATH, {}, headers={"Idempotency-Key": key})
    return answer.status, answer.json()


@pytest.mark.parametrize("phase", ["Succeeded", "Failed", "Cancelled", "gone"])
def test_a_move_that_has_ended_keeps_none_from_moving_though_its_vm_says_so_yet(lab: ApiLab, phase: str) -> None:
    _, first = migrate(lab, "first")
    tell(lab, "/vm/default/web", WorkloadStatus(phase="Running", node="n1", migration=first["name"]))
    assert "is migrating already" in str(migrate(lab, "second"))
    if phase == "gone":
        tell(lab, "/vm/default/web", WorkloadStatus(phase="Running", node="n1", migration="web-00000"))
    else:
        tell(lab, f"/migration/default/{first['name']}", MigrationStatus(phase=phase))  # type: ignore[arg-type]
    status, second = migrate(lab, "second")
    assert status == 201 and second["name"] != first["name"]


def test_a_repeated_request_is_answered_with_the_move_that_it_made(lab: ApiLab) -> None:
    _, first = migrate(lab, "k")
    tell(lab, "/vm/default/web", WorkloadStatus(phase="Running", node="n1", migration=first["name"]))
    assert migrate(lab, "k")[1]["uid"] == first["uid"]
