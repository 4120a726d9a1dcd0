"""Shares at the real API: an object of another project can be named by those whom its owner lets, and nobody learns more of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from tests.scenario.api.test_api_quotas import change_status, refuse, remove
from tests.scenario.api_lab import ApiLab, make_image, make_vm

from weft.client import Client
from weft.contracts.clock import SystemClock
from weft.kinds.image import ImageStatus
from weft.objects.errors import Forbidden, InUse, InvalidInput, NotFound, WeftError
from weft.store.sqlite.store import SqliteStore

MIB = 1 << 20


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiLab]:
    folder = tmp_path_factory.mktemp("shares")
    lab = ApiLab(folder, SqliteStore(folder / "store.db", SystemClock()))
    yield lab
    lab.close()


def editor(lab: ApiLab, project: str, *images: str) -> Client:
    """An editor's client in a new project with these images."""
    lab.client.create({"kind": "project", "name": project, "spec": {}})
    client = lab.with_token(use="access", role="editor", project=project)
    client.project = project
    for name in images:
        client.create(make_image(name))
    return client


def share(client: Client, name: str, **given: list[str]) -> list[str]:
    return list(client.verb("image", name, "share", given)["spec"]["shared_with"])


def use(client: Client, name: str, image: str, **spec: Any) -> dict[str, Any]:
    return client.create(make_vm(name, image=image, networks=[], **spec))


def not_found(client: Client, image: str, kind: str = "vm", **spec: Any) -> NotFound:
    with pytest.raises(NotFound) as caught:
        client.create({"kind": kind, "name": "refused", "spec": {"image": image, **spec}})
    return caught.value


def test_an_image_that_its_owner_shared_is_named_by_the_other_project_and_by_no_third(lab: ApiLab) -> None:
    ann, bea, cem = editor(lab, "physics", "base"), editor(lab, "biology"), editor(lab, "arts")
    refused = not_found(bea, "physics/base")
    assert share(ann, "base", **{"with": ["biology"]}) == ["biology"]
    assert use(bea, "fold", "physics/base", iso="physics/base")["spec"]["image"] == "physics/base"
    task = {"image": "physics/base", "networks": []}
    bea.create({"kind": "container", "name": "fold", "spec": task})
    bea.create({"kind": "job", "name": "fold", "spec": {"task": task}})
    bea.create({"kind": "function", "name": "fold", "spec": {"image": "physics/base"}})
    bea.create({"kind": "image", "name": "copy", "spec": {"url": "oci://physics/base"}})
    not_found(cem, "physics/base")
    assert share(ann, "base", stop=["biology"]) == []
    assert str(not_found(bea, "physics/base")) == str(refused)


def test_no_share_and_no_image_and_no_project_are_the_same_error_with_the_remedy(lab: ApiLab) -> None:
    ann, bea = editor(lab, "chemistry", "hidden"), editor(lab, "history")
    share(ann, "hidden", **{"with": ["default"]})
    for kind in ("vm", "container"):
        errors = [
            (
                error.message.replace(text, "X"),
                str(error.hint).replace(text, "X").replace(name, "N").replace(project, "P"),
            )
            for text in ("chemistry/hidden", "chemistry/missing", "nowhere/hidden")
            for project, name in [text.split("/")]
            for error in [not_found(bea, text, kind)]
        ]
        assert len(set(errors)) == 1, errors
        assert "not found, or not shared with project history" in errors[0][0]
        assert "weft image share N -p P --with history" in errors[0][1]
    assert "REGISTRY/chemistry/hidden:TAG" in str(not_found(bea, "chemistry/hidden", "container").hint)
    error = (
        not_found(bea, "chemistry/hidden", "job", task={"image": "chemistry/hidden", "networks": []}) if False else None
    )
    assert error is None


def test_the_own_project_is_left_out_of_a_name(lab: ApiLab) -> None:
    ann = editor(lab, "maths", "own")
    for spec, field in (({"image": "maths/own"}, "spec.image"), ({"image": "own", "iso": "maths/own"}, "spec.iso")):
        with pytest.raises(InvalidInput) as caught:
            ann.create({"kind": "vm", "name": "v", "spec": spec})
        assert (caught.value.field, caught.value.hint) == (field, "write own")
    with pytest.raises(InvalidInput) as caught:
        share(ann, "own", **{"with": ["maths"]})
    assert caught.value.field == "spec.shared_with" and "leave it out" in str(caught.value.hint)


def test_a_share_is_given_by_who_may_change_the_object_and_does_not_say_which_projects_exist(lab: ApiLab) -> None:
    ann, bea = editor(lab, "geology", "rock"), editor(lab, "botany")
    viewer = lab.with_token(use="access", role="operator", project="geology")
    viewer.project = "geology"
    for client in (viewer, bea):
        with pytest.raises(Forbidden):
            client.verb("image", "rock", "share", {"with": ["botany"]}, project="geology")
    answers = []
    for name in ("botany", "botan"):
        given = {"with": [name]}
        answer = ann.http.request("POST", "/v1/projects/geology/images/rock:share", given)
        shown = [answer.status, answer.json()["spec"]["shared_with"]]
        answers.append(str(shown).replace(name, "X"))
        share(ann, "rock", stop=[name])
        for put in (ann.put, lambda raw: ann.apply([{**raw, "project": "geology"}])):
            put({**make_image("rock"), "spec": {**make_image("rock")["spec"], "shared_with": [name]}})
        share(ann, "rock", stop=[name])
    assert answers[0] == answers[1]
    share(ann, "rock", **{"with": ["later"]})
    with pytest.raises(InUse, match="image/rock -p geology is shared with later, and a new project would inherit that"):
        lab.client.create({"kind": "project", "name": "later", "spec": {}})
    share(ann, "rock", stop=["later"])
    lab.client.create({"kind": "project", "name": "later", "spec": {}})
    dan = lab.with_token(use="access", role="editor", project="later")
    dan.project = "later"
    not_found(dan, "geology/rock")


def test_the_share_of_a_deleted_project_goes_to_no_later_one(lab: ApiLab) -> None:
    ann = editor(lab, "law", "code")
    lab.client.create({"kind": "project", "name": "gone", "spec": {}})
    share(ann, "code", **{"with": ["gone"]})
    lab.client.delete("project", "gone")
    with pytest.raises(InUse, match=r'project "gone" can\'t be created: image/code -p law') as caught:
        lab.client.create({"kind": "project", "name": "gone", "spec": {}})
    assert "weft image share code --stop gone -p law" in str(caught.value.hint)
    share(ann, "code", stop=["gone"])
    lab.client.create({"kind": "project", "name": "gone", "spec": {}})


def test_a_manifest_that_says_nothing_of_shares_leaves_them(lab: ApiLab) -> None:
    ann = editor(lab, "music", "song")
    lab.client.create({"kind": "project", "name": "dance", "spec": {}})
    share(ann, "song", **{"with": ["dance"]})
    assert ann.put(make_image("song"))["spec"]["shared_with"] == ["dance"]
    assert (
        ann.put({**make_image("song"), "spec": {**make_image("song")["spec"], "shared_with": []}})["spec"][
            "shared_with"
        ]
        == []
    )


def test_what_names_it_keeps_it_when_its_share_ends_and_keeps_it_from_being_deleted(lab: ApiLab) -> None:
    ann, bea = editor(lab, "latin", "verbs", "mine"), editor(lab, "greek", "verbs")
    share(ann, "verbs", **{"with": ["greek"]})
    use(bea, "homer-secret-name", "latin/verbs", cpu=1)
    use(bea, "own", "verbs")
    share(ann, "verbs", stop=["greek"])
    assert bea.patch("vm", "homer-secret-name", {"spec": {"cpu": 2}})["spec"]["cpu"] == 2
    with pytest.raises(InUse) as caught:
        ann.delete("image", "verbs")
    error = caught.value
    assert "others in project greek" in error.message and "ask them" in str(error.hint)
    assert "homer" not in f"{error.message} {error.hint} {error.details}"
    ann.delete("image", "mine")
    with pytest.raises(InUse, match="vm/own"):
        bea.delete("image", "verbs")
    remove(lab, bea, "vm", "homer-secret-name")
    ann.delete("image", "verbs")
    assert ann.list("image").items == []


def test_a_network_that_its_owner_shared_is_joined_by_the_other_project_and_by_no_third(lab: ApiLab) -> None:
    ann, bea, cem = editor(lab, "metro"), editor(lab, "bus", "tiny"), editor(lab, "ferry", "tiny")
    ann.create(make_image("tiny"))
    ann.create({"kind": "network", "name": "lab", "spec": {"cidr": "10.81.0.0/24"}})
    ann.create(make_vm("hidden-name", networks=["lab:10.81.0.5"]))
    refused = []
    for network in ("metro/lab", "metro/none", "nowhere/lab", "metro/lab:10.81.0.5", "metro/lab:10.99.0.5"):
        with pytest.raises(NotFound) as missing:
            bea.create(make_vm("fold", networks=[network]))
        refused.append(missing.value.message.replace(network.partition(":")[0], "X"))
    assert set(refused) == {'network "X" not found, or not shared with project bus'}
    for fields, meant in (
        ({"networks": ["network/lab"]}, "write lab for that of this project; ask someone of project network: "),
        ({"image": "vm/fold"}, "weft image create NAME --from vm/fold; ask someone of project vm: "),
    ):
        with pytest.raises(NotFound) as missing:
            bea.create(make_vm("fold", **fields))
        assert meant in (missing.value.hint or "")
    ann.verb("network", "lab", "share", {"with": ["bus"]})
    bea.create(make_vm("fold", networks=["metro/lab:10.81.0.9"]))
    task = {"image": "tiny", "networks": ["metro/lab"]}
    bea.create({"kind": "container", "name": "fold", "spec": task})
    bea.create({"kind": "job", "name": "fold", "spec": {"task": task}})
    for client, network in ((cem, "metro/lab"), (ann, "metro/lab")):
        with pytest.raises(InvalidInput if client is ann else NotFound):
            client.create(make_vm("no", networks=[network]))
    with pytest.raises(InUse) as taken:
        bea.create(make_vm("other", networks=["metro/lab:10.81.0.5"]))
    assert taken.value.message == "10.81.0.5 in network metro/lab is taken"
    with pytest.raises(InUse) as taken:
        ann.create(make_vm("other", networks=["lab:10.81.0.9"]))
    assert "fold" not in f"{taken.value.message} {taken.value.hint} {taken.value.details}"
    with pytest.raises(InvalidInput, match="functions reach only networks of their own"):
        bea.create({"kind": "function", "name": "f", "spec": {"image": "tiny", "network": "metro/lab"}})
    (seen,) = bea.list("network", query={"shared": "true"}).items
    assert (seen["project"], seen["spec"]) == ("metro", {"cidr": "10.81.0.0/24", "mtu": 1450, "domain": "weft"})
    for client, what in ((bea, ("network", "lab", "metro")), (ann, ("vm", "fold", "bus"))):
        with pytest.raises(Forbidden):
            client.get(*what[:2], project=what[2])
    ann.verb("network", "lab", "share", {"stop": ["bus"]})
    with pytest.raises(NotFound):
        bea.create(make_vm("late", networks=["metro/lab"]))
    assert bea.put(make_vm("fold", networks=["metro/lab:10.81.0.9"], cpu=2))["spec"]["cpu"] == 2
    with pytest.raises(InUse) as used:
        ann.delete("network", "lab")
    assert "others in project bus" in used.value.message and "fold" not in f"{used.value.message}{used.value.details}"


@pytest.mark.parametrize("rival", ["withdrawal", "deletion", "network-deletion"])
def test_a_racing_withdrawal_or_deletion_and_a_new_user_are_settled_in_the_commit(lab: ApiLab, rival: str) -> None:
    ann, bea = editor(lab, f"a-{rival}"), editor(lab, f"b-{rival}", "tiny")
    for number in range(12):
        name = f"i{number}"
        kind = "network" if rival == "network-deletion" else "image"
        spec = {"cidr": "10.82.0.0/24"} if kind == "network" else make_image(name)["spec"]
        ann.create({"kind": kind, "name": name, "spec": {**spec, "shared_with": [f"b-{rival}"]}})
        results: list[Any] = []
        barrier = threading.Barrier(2)

        def run(work: Any, barrier: threading.Barrier = barrier, results: list[Any] = results) -> None:
            barrier.wait()
            try:
                results.append(work())
            except WeftError as error:
                results.append(error)

        def end(name: str = name, kind: str = kind) -> object:
            return share(ann, name, stop=[f"b-{rival}"]) if rival == "withdrawal" else ann.delete(kind, name)

        def begin(name: str = name, number: int = number, kind: str = kind) -> object:
            if kind == "network":
                return bea.create(make_vm(f"v{number}", networks=[f"a-{rival}/{name}"]))
            return use(bea, f"v{number}", f"a-{rival}/{name}")

        threads = [threading.Thread(target=run, args=(work,)) for work in (end, begin)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        image, user = lab.stored(f"/{kind}/a-{rival}/{name}"), lab.stored(f"/vm/b-{rival}/v{number}")
        if rival != "withdrawal":
            assert image is not None or user is None, results  # it never names what isn't there
        else:
            assert image is not None and (user is None or user.revision < image.revision), results
        errors = [one for one in results if isinstance(one, WeftError)]
        assert all(isinstance(one, NotFound | InUse) for one in errors), results


def test_one_request_brings_a_shared_image_and_what_names_it(lab: ApiLab) -> None:
    for name in ("one", "two"):
        lab.client.create({"kind": "project", "name": name, "spec": {}})
    image = {**make_image(), "project": "one", "spec": {**make_image()["spec"], "shared_with": ["two"]}}
    made = lab.client.apply([image, {**make_vm("v", image="one/tiny", networks=[]), "project": "two"}])
    assert len(made) == 2 and lab.stored("/vm/two/v") is not None


def test_a_list_shows_what_is_shared_with_a_project_and_of_it_only_what_users_need(lab: ApiLab) -> None:
    ann, bea, cem = editor(lab, "north"), editor(lab, "south", "local"), editor(lab, "west")
    url = "http://files.example/disk?signature=hush"
    spec = {"url": url, "shared_with": ["south"]}
    ann.create({"kind": "image", "name": "open", "labels": {"plan": "hush"}, "spec": spec})
    ann.create(make_image("closed"))
    status = ImageStatus(phase="Available", sha256="ab" * 32, size=5, virtual_size=7, message="hush")
    change_status(lab, ann, "image", "open", status)
    (found,) = bea.list("image", query={"shared": "true"}).items
    assert (found["project"], found["name"]) == ("north", "open")
    assert (found["status"]["phase"], found["status"]["virtual_size"]) == ("Available", 7)
    assert "hush" not in str(found) and "south" not in str(found) and found["spec"] == {}
    assert cem.list("image", query={"shared": "true"}).items == []
    assert [one["name"] for one in bea.list("image").items] == ["local"]
    for fields, count in (("status.phase=Available", 1), ("spec.shared_with", 0)):
        assert len(bea.list("image", query={"shared": "true"}, fields=fields).items) == count
    with pytest.raises(Forbidden):
        cem.list("image", project="south", query={"shared": "true"})
    with pytest.raises(InvalidInput, match="takes a project"):
        lab.client.list("image", all_projects=True, query={"shared": "true"})
    with pytest.raises(InvalidInput, match="shared"):
        bea.list("vm", query={"shared": "true"})
    with pytest.raises(Forbidden):
        bea.get("image", "open", project="north")


def test_a_reservation_is_shared_as_an_image_is(lab: ApiLab) -> None:
    ann, bea = editor(lab, "deans", "tiny"), editor(lab, "pupils", "tiny")
    spec = {"cpu": 2, "memory": "1G", "duration": "1h", "description": "hush"}
    ann.create({"kind": "reservation", "name": "class", "spec": spec})
    lab.client.create({"kind": "quota", "name": "project", "project": "pupils", "spec": {"cpu": 1, "instances": 2}})

    def begin(name: str, reservation: str = "deans/class", **more: Any) -> dict[str, Any]:
        return use(bea, name, "tiny", reservation=reservation, **more)

    with pytest.raises(NotFound) as caught:
        begin("v")
    assert caught.value.field == "spec.reservation"
    assert "weft reservation share class -p deans --with pupils" in str(caught.value.hint)
    with pytest.raises(NotFound) as missing:
        begin("v", "deans/missing")
    assert str(missing.value).replace("missing", "class") == str(caught.value)
    assert ann.verb("reservation", "class", "share", {"with": ["pupils"]})["spec"]["shared_with"] == ["pupils"]
    begin("v", cpu=2)  # its cores are the reservation's, not the project's
    task = {"image": "tiny", "networks": [], "reservation": "deans/class", "cpu": 1}
    bea.create({"kind": "job", "name": "j", "spec": {"task": task}})
    with pytest.raises(InvalidInput, match="more than a slot of reservation/deans/class has") as large:
        begin("large", cpu=3)
    assert large.value.field == "spec.cpu"
    refuse(lambda: [begin(f"more-{number}", cpu=1) for number in range(2)])
    (found,) = bea.list("reservation", query={"shared": "true"}).items
    assert (found["name"], found["status"]["state"]) == ("class", "Requested") and "hush" not in str(found)
    assert found["spec"] == {"cpu": 2.0, "memory": 1 << 30, "gpus": 0, "count": 1}
    with pytest.raises(InvalidInput) as own:
        ann.create(make_vm("v", image="tiny", networks=[], reservation="deans/class"))
    assert (own.value.field, own.value.hint) == ("spec.reservation", "write class")
    lab.client.create({"kind": "group", "name": "staff", "spec": {}})
    ann.patch("reservation", "class", {"spec": {"groups": ["staff"]}})
    with pytest.raises(Forbidden, match="reservation/deans/class is for users of staff"):
        begin("outsider", cpu=1)
    ann.verb("reservation", "class", "share", {"stop": ["pupils"]})
    with pytest.raises(InUse, match="others in project pupils"):
        ann.delete("reservation", "class")


def test_a_constraint_is_shared_as_an_image_is(lab: ApiLab) -> None:
    ann, bea = editor(lab, "labs", "tiny"), editor(lab, "offices", "tiny")
    ann.create({"kind": "constraint", "name": "fast", "spec": {"expression": "storage=nvme"}})

    def begin(name: str, **spec: Any) -> dict[str, Any]:
        return use(bea, name, "tiny", **spec)

    code = {"image": "registry.example.org/web:1"}
    for field, spec in (("spec.constraint", {"constraint": str}), ("spec.prefer", {"prefer": lambda one: [one]})):
        errors = set()
        for name in ("fast", "none"):  # what doesn't exist is awaited in the own project only
            with pytest.raises(NotFound) as caught:
                begin("v", **{key: form(f"@labs/{name}") for key, form in spec.items()})
            assert caught.value.field == field
            errors.add(
                f"{caught.value} {caught.value.hint}".replace(f"labs/{name}", "X").replace(f"share {name}", "share X")
            )
        assert len(errors) == 1 and "weft constraint share X -p labs --with offices" in errors.pop()
    begin("own", constraint="@none")
    ann.verb("constraint", "fast", "share", {"with": ["offices"]})
    begin("v", constraint="@labs/fast AND zone=a", prefer=["@labs/fast"])
    with pytest.raises(InvalidInput, match=r"can meet both .* of constraint labs/fast") as clash:
        begin("clash", constraint="@labs/fast AND storage=hdd")
    assert clash.value.field == "spec.constraint"
    reserved = {"cpu": 1, "memory": "1G", "duration": "1h", "constraint": "@labs/fast"}
    bea.create({"kind": "reservation", "name": "r", "spec": reserved})
    (found,) = bea.list("constraint", query={"shared": "true"}).items
    assert found["spec"]["expression"] == "storage=nvme" and "shared_with" not in found["spec"]
    with pytest.raises(InvalidInput) as own:
        use(ann, "v", "tiny", constraint="@labs/fast")
    assert (own.value.field, own.value.hint) == ("spec.constraint", "write fast")
    ann.verb("constraint", "fast", "share", {"stop": ["offices"]})
    bea.patch("vm", "v", {"spec": {"constraint": "@labs/fast AND zone=b"}})  # it has it already
    with pytest.raises(NotFound) as function:
        bea.create({"kind": "function", "name": "f", "spec": {**code, "constraint": "@labs/fast"}})
    assert function.value.field == "spec.constraint"
    with pytest.raises(InUse, match="others in project offices"):
        ann.delete("constraint", "fast")


def test_a_quota_counts_the_disk_of_a_shared_image(lab: ApiLab) -> None:
    ann, bea = editor(lab, "east", "large"), editor(lab, "small")
    share(ann, "large", **{"with": ["small"]})
    change_status(lab, ann, "image", "large", ImageStatus(phase="Available", virtual_size=60 * MIB))
    lab.client.create({"kind": "quota", "name": "project", "project": "small", "spec": {"disk": "100M"}})
    use(bea, "first", "east/large")
    error = refuse(lambda: use(bea, "second", "east/large"))
    assert "disk" in error.message
    remove(lab, bea, "vm", "first")
    use(bea, "second", "east/large")
