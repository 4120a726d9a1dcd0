"""Packages of an upgrade at the API: who brings them, where they are kept, and which node gets them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.scenario.api_lab import ApiLab
from tests.scenario.people.test_people import wait_until
from tests.unit.cli.fabric.test_fabric_packages import put

from weft.cli.fabric.packages import find_packages, upload
from weft.client.answer import raise_problem
from weft.kinds.parts.packages import PackageFile, UpgradeOrder
from weft.kinds.upgrade import UPGRADE, UpgradeSpec, UpgradeStatus
from weft.objects.errors import Forbidden, IllegalTransition, InvalidInput, NotFound

DATA = b"!<arch>\ndebian-binary   0           0     0     100644  4         `\n2.0\n"
SHA256 = hashlib.sha256(DATA).hexdigest()
NAMES = ("weft-agent", "weft-client", "weft-server")


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[ApiLab]:
    lab = ApiLab(tmp_path)
    yield lab
    lab.close()


def name_all(**changes: Any) -> list[dict[str, Any]]:
    return [{"name": name, "architecture": "amd64", "sha256": SHA256, "size": 9, **changes} for name in NAMES]


def test_packages_are_uploaded_once_and_read_by_digest(lab: ApiLab, tmp_path: Path) -> None:
    for name in NAMES:
        put(tmp_path, name)
    found = find_packages(tmp_path)
    assert upload(lab.client.http, found) == sum(one.size for one in found)
    assert upload(lab.client.http, found) == 0
    answer = lab.client.http.request("GET", f"/v1/blobs/{found[0].sha256}")
    assert answer.body == found[0].path.read_bytes()


def test_only_administrators_of_the_fabric_bring_packages_and_begin_upgrades(lab: ApiLab) -> None:
    person = lab.with_token(use="access", role="editor", project="default")
    for method in ("GET", "PUT"):
        with pytest.raises(Forbidden):
            raise_problem(person.http.request(method, f"/v1/packages/{SHA256}", DATA if method == "PUT" else None))
    with pytest.raises(Forbidden):
        person.create({"kind": "upgrade", "name": "x", "spec": {"to": "0.2.0", "packages": name_all()}})


@pytest.mark.parametrize(
    ("digest", "data", "reason"),
    [
        (SHA256, DATA + b"!", "badPackage"),
        (hashlib.sha256(b"PK zip").hexdigest(), b"PK zip", "badPackage"),
        ("x", b"", "notFound"),
    ],
)
def test_what_is_not_the_named_package_is_refused_and_not_kept(
    lab: ApiLab, digest: str, data: bytes, reason: str
) -> None:
    answer = lab.client.http.request("PUT", f"/v1/packages/{digest}", data)
    assert answer.json()["reason"] == reason
    assert lab.client.http.request("GET", f"/v1/packages/{digest}").status == 404
    assert [
        path for path in lab.settings.blobs.rglob("*") if path.is_file() and path.stat().st_size == len(data) > 0
    ] == []


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"to": "new", "packages": name_all()}, "spec.to"),
        ({"to": "", "packages": name_all()}, "spec.to"),
        ({"to": "0.2.0", "packages": []}, "spec.packages"),
        ({"to": "0.2.0", "packages": name_all()[:2]}, "spec.packages"),
        ({"to": "0.2.0", "packages": name_all() + name_all()[:1]}, "spec.packages"),
        ({"to": "0.2.0", "packages": name_all(sha256="../../etc/passwd")}, "spec.packages[0].sha256"),
        ({"to": "0.2.0", "packages": name_all(size=0)}, "spec.packages[0].size"),
        ({"to": "0.2.0"}, "spec.packages"),
    ],
)
def test_an_upgrade_that_cannot_be_carried_out_is_refused_by_field(
    lab: ApiLab, spec: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        lab.client.create({"kind": "upgrade", "name": "x", "spec": spec})
    assert refused.value.field == field


def test_its_release_can_never_change_and_one_that_is_over_can_not_be_resumed(lab: ApiLab) -> None:
    lab.client.create({"kind": "upgrade", "name": "x", "spec": {"to": "0.2.0", "packages": name_all()}})
    with pytest.raises((InvalidInput, IllegalTransition)):
        lab.client.patch("upgrade", "x", {"spec": {"to": "0.3.0"}})
    assert lab.client.verb("upgrade", "x", "stop", {})["actions"]["stop"] is True
    assert lab.client.verb("upgrade", "x", "resume", {})["actions"] == {"stop": False, "attempt": 1}
    spec = UpgradeSpec(to="0.2.0", packages=[PackageFile(**one) for one in name_all()])
    lab.put(UPGRADE.make("over", spec, 1.0, status=UpgradeStatus(phase="Done")))
    for verb in ("stop", "resume"):
        with pytest.raises(IllegalTransition, match=r"upgrade/over is over \(Done\)"):
            lab.client.verb("upgrade", "over", verb, {})


def test_a_node_gets_the_packages_of_its_own_order_and_no_others(lab: ApiLab) -> None:
    raise_problem(lab.client.http.request("PUT", f"/v1/packages/{SHA256}", DATA))
    one, two = lab.join("n1"), lab.join("n2")
    packages = [PackageFile(name=name, architecture="amd64", sha256=SHA256, size=len(DATA)) for name in NAMES]
    order = UpgradeOrder(attempt="u/1", node_uid=one.uid, release="0.2.0", packages=packages)
    status = UpgradeStatus(phase="Running", order=order)
    lab.put(UPGRADE.make("x", UpgradeSpec(to="0.2.0", packages=packages), 1.0, status=status))
    wait_until(lambda: lab.api.orders.find(one.uid).upgrade == [order])
    assert lab.api.orders.find(two.uid).upgrade == []
    assert one.client.http.request("GET", f"/v1/blobs/{SHA256}").body == DATA
    assert two.client.http.request("GET", f"/v1/blobs/{SHA256}").status == 403
    with pytest.raises((Forbidden, NotFound)):
        two.client.get("upgrade", "x")
