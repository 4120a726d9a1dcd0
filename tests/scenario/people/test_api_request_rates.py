"""Requests a second at a real API server: refused with the time to wait, for a project's people alone; clients wait."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.scenario.api.test_api_quotas import grant, vm
from tests.scenario.api_lab import ApiLab

from weft.client import Client
from weft.client.answer import ClientAnswer
from weft.objects.errors import InvalidInput, Throttled


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiLab]:
    lab = ApiLab(tmp_path_factory.mktemp("rates"))
    yield lab
    lab.close()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients don't wait."""
    monkeypatch.setattr("weft.client.http.MOST_THROTTLED_SECONDS", 0.0)


def ask_until_refused(client: Client, path: str) -> ClientAnswer:
    """At one request a second, one of many at once is refused."""
    for _ in range(200):
        answer = client.http.request("GET", path)
        if answer.status == 429:
            return answer
        assert answer.status == 200, answer.json()
    raise AssertionError("none was refused")


@pytest.mark.parametrize(
    "path",
    [
        "/v1/projects/told/vms",
        "/v1/projects/t%6fld/vms",
        "/v1/%70rojects/told/accounting",
        "/v1/projects/told/quotas/project",
        "/v1/projects/told",
    ],
)
def test_one_too_many_is_refused_for_the_moment(lab: ApiLab, hasty: None, path: str) -> None:
    if lab.stored("/project/-/told") is None:
        grant(lab, "told", requests_per_second=1)
    ann = lab.with_token(use="access", role="editor", project="told")
    answer = ask_until_refused(ann, path)
    assert (answer.json()["reason"], answer.headers["retry-after"]) == ("quotaExceeded", "1")
    assert answer.json()["detail"] == "project told: requests_per_second: 1 of 1 used, 1 more requested"
    for _ in range(20):  # an administrator of the fabric raises it nevertheless
        assert lab.client.http.request("GET", path).status == 200


def test_writes_count_and_do_nothing_when_refused(lab: ApiLab, hasty: None) -> None:
    ann = grant(lab, "writes", requests_per_second=1)
    made, refused = set(), set()
    for number in range(20):
        try:
            ann.create(vm(f"c{number}"))
            made.add(f"c{number}")
        except Throttled:
            refused.add(f"c{number}")
        try:
            ann.apply([vm(f"a{number}")])
            made.add(f"a{number}")
        except Throttled:
            refused.add(f"a{number}")
    assert any(name[0] == "c" for name in refused) and any(name[0] == "a" for name in refused)
    assert {one["name"] for one in lab.client.list("vm", project="writes").items} == made


def test_others_can_not_use_up_a_project_s_requests(lab: ApiLab, hasty: None) -> None:
    ann = grant(lab, "calm", requests_per_second=1)
    grant(lab, "loud")
    eve = lab.with_token(use="access", role="admin", project="loud")
    for _ in range(30):
        assert eve.http.request("GET", "/v1/projects/calm/vms").status == 403
    assert ann.http.request("GET", "/v1/projects/calm/vms").status == 200
    for _ in range(30):
        assert eve.http.request("GET", "/v1/projects/loud/vms").status == 200


def test_a_client_waits_by_itself(lab: ApiLab) -> None:
    ann = grant(lab, "patient", requests_per_second=2)
    for number in range(4):
        ann.create(vm(f"v{number}"))
    assert len(ann.list("vm").items) == 4


@pytest.mark.parametrize("rate", [0, -1, 0.5, 10**30, "fast"])
def test_nonsense_is_refused_with_its_field(lab: ApiLab, rate: object) -> None:
    quota = {"kind": "quota", "name": "project", "project": "default", "spec": {"requests_per_second": rate}}
    with pytest.raises(InvalidInput) as caught:
        lab.client.create(quota)
    assert (caught.value.field or "").startswith("spec") and caught.value.hint and len(caught.value.message) < 300
