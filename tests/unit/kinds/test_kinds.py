"""What holds for every kind, and the checks of each."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from weft.agent.state.workload_kinds import WORKLOAD_KINDS
from weft.kinds.image import ImageSpec, check_image
from weft.kinds.network import NetworkSpec, check_network, check_new_network, find_rights, gateway_of
from weft.kinds.parts.workload import claim_places, parse_publish
from weft.kinds.record import Kind
from weft.kinds.registry import BY_NAME, KINDS, WORKLOADS, find_kind
from weft.kinds.vm import VM, VmSpec, check_vm
from weft.kinds.volume import VolumeSpec, check_volume
from weft.objects.envelope import Envelope
from weft.objects.errors import IllegalTransition, InvalidInput, NotFound
from weft.objects.lifecycle import Phase
from weft.objects.schema import describe_fields, find_problems, read_strict
from weft.objects.spec_change import plan_change

EVERY_KIND = pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.name)
PEOPLES_KIND = pytest.mark.parametrize("kind", [k for k in KINDS if k.access.writer == "people"], ids=lambda k: k.name)


def vm(phase: str = "Running", **spec: object) -> dict[str, object]:
    full = msgspec.to_builtins(VmSpec(image="tiny", **spec))  # type: ignore[arg-type]
    return {"kind": "vm", "name": "web", "project": "default", "spec": full, "status": {"phase": phase}}


@EVERY_KIND
def test_words_of_a_kind_lead_to_it(kind: Kind) -> None:
    for word in (kind.name, kind.plural, kind.name.upper(), *kind.display.aliases):
        assert find_kind(word) is kind


@EVERY_KIND
def test_columns_survive_an_empty_object(kind: Kind) -> None:
    obj = {
        "kind": kind.name,
        "name": "x",
        "spec": {"workload": {"kind": "vm", "name": "w"}},
        "status": {},
        "report": {},
    }
    assert all(isinstance(column.value(obj), str) for column in kind.display.columns)


@PEOPLES_KIND
def test_every_field_people_set_is_described(kind: Kind) -> None:
    # List items are described by their list.
    assert [d.path for d in describe_fields(kind.spec) if not d.description] == []


@EVERY_KIND
def test_every_status_starts_empty(kind: Kind) -> None:
    msgspec.json.decode(b"{}", type=kind.status)
    if kind.report:
        msgspec.json.decode(b"{}", type=kind.report)


def test_an_unknown_kind_gets_a_suggestion() -> None:
    with pytest.raises(NotFound) as caught:
        find_kind("netwrok")
    assert caught.value.hint == "did you mean network?"


@pytest.mark.parametrize(
    "fields",
    [
        {"memory": "1M"},
        {"cpu": 1000},
        {"publish": ["80"]},
        {"publish": ["0:80"]},
        {"publish": ["80:99999"]},
        {"publish": ["8080:80", "8080:81"]},
        {"networks": ["a", "a"]},
        {"publish": ["8080:80"], "networks": []},
        {"volumes": ["d", "d"]},
        {"networks": [f"n{i}" for i in range(9)]},
    ],
)
def test_a_vm_that_makes_no_sense_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_vm(read_strict({"image": "tiny", **fields}, VmSpec))
    assert caught.value.field and caught.value.field.startswith("spec.")


def test_a_port_mapping_is_read() -> None:
    assert parse_publish("8080:80") == (8080, 80, "tcp")
    assert parse_publish("5353:53/udp") == (5353, 53, "udp")


def test_a_published_port_is_claimed_by_name_so_that_no_two_have_it() -> None:
    spec = VmSpec(image="tiny", publish=["8080:80", "8080:80/udp"])
    claims = claim_places(Envelope(kind="vm", name="web", uid="u", project="default"), spec)
    assert [c.name for c in claims] == ["tcp-8080", "udp-8080"]


def test_stop_sets_run_to_stop_and_start_sets_it_back() -> None:
    stop, start = VM.verb("stop"), VM.verb("start")
    assert stop and stop.change and start and start.change
    stopped = stop.change(vm(), None)
    assert stopped["run"] == "stop"
    again = start.change(vm("Stopped", run="stop"), None)
    assert again["run"] == "run"


def test_starting_a_guest_that_ended_by_itself_asks_for_a_fresh_boot() -> None:
    start = VM.verb("start")
    assert start and start.act
    for run in ("run", "stop"):  # people may have told it to stop after that
        assert start.act(vm("Stopped", run=run), None) == {"restart_generation": 1}
    assert start.act(vm("Running", run="run"), None) == {}


def test_an_illegal_verb_names_the_legal_ones() -> None:
    hold = VM.verb("hold")
    assert hold and hold.change
    with pytest.raises(IllegalTransition, match="Running") as caught:
        hold.change(vm("Running"), None)
    assert "stop" in (caught.value.hint or "")


def test_asking_for_what_is_so_changes_nothing() -> None:
    suspend = VM.verb("suspend")
    assert suspend and suspend.change
    before = vm(Phase.SUSPENDED, run="suspend")
    assert suspend.change(before, None) == before["spec"]


def test_the_image_of_a_vm_can_only_be_replaced() -> None:
    changes = plan_change({"image": "a", "cpu": 1}, {"image": "b", "cpu": 2}, VmSpec)
    assert {c.path: c.mode for c in changes} == {"spec.image": "replace", "spec.cpu": "restart"}


@pytest.mark.parametrize(
    "cidr",
    [
        "10.0.0.0",
        "10.0.0.1/24",
        "x",
        "10.0.0.0/30",
        "0.0.0.0/4",
        "::/64",
        "127.0.0.0/24",
        "224.0.0.0/24",
        "0.0.0.0/8",
        "0.5.0.0/16",
        "127.0.0.0/8",
        "169.254.7.0/24",
        "169.0.0.0/8",
        "239.1.0.0/16",
        "240.0.0.0/8",
        "255.255.255.0/24",
        "10.0.0.0/33",
        "",
    ],
)
def test_a_range_no_network_can_have_is_refused(cidr: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_new_network(NetworkSpec(cidr=cidr))
    assert caught.value.field == "spec.cidr"


@pytest.mark.parametrize("domain", ["com", "net", "de", "zz", "localhost", "local", "arpa"])
def test_a_domain_in_which_guests_look_for_others_is_refused(domain: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_new_network(NetworkSpec(cidr="10.0.0.0/24", domain=domain))
    assert caught.value.field == "spec.domain" and domain in caught.value.message
    for good in ("weft", "lan", f"{domain}-1"):
        check_new_network(NetworkSpec(cidr="10.0.0.0/24", domain=good))


def test_the_first_address_is_the_gateway() -> None:
    assert gateway_of("10.20.0.0/24") == "10.20.0.1"


@pytest.mark.parametrize(
    "fields",
    [
        {"url": "gopher://x/y"},
        {"url": "/plain/path"},
        {"url": "file://host/x"},
        {"url": "http:///x"},
        {"url": "http://x/y", "sha256": "abc"},
        {"url": "http://x/y", "sha256": "G" * 64},
    ],
)
def test_an_image_that_can_not_be_fetched_is_refused(fields: dict[str, str]) -> None:
    with pytest.raises(InvalidInput):
        check_image(read_strict(fields, ImageSpec))


@pytest.mark.parametrize("spec", [{"memory": "65T"}, {"disk": "2P"}])
def test_what_no_guest_can_have_is_refused_by_name(spec: dict[str, str]) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_vm(read_strict({"image": "tiny", **spec}, VmSpec))
    assert caught.value.field == f"spec.{next(iter(spec))}"


def test_a_volume_no_disk_can_be_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"spec\.size"):
        check_volume(VolumeSpec(size=2**51))


@pytest.mark.parametrize(
    "open",
    [
        ["apis"],
        ["API"],
        [""],
        ["tcp:0"],
        ["tcp:80-79"],
        ["tcp:22 to group:self"],
        ["tcp:22 from 10.0.0.1/32"],
        ["tcp:22 to 10.0.0.1/8"],
        ["tcp:22 to fe80::/64"],
        ["tcp:22 to 10.0.0.1/32; drop"],
        ["any\nflush ruleset"],
        ["api"] * 33,
    ],
)
def test_what_a_network_can_t_open_is_refused_and_names_the_field(open: list[str]) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_network(read_strict({"cidr": "10.0.0.0/24", "open": open}, NetworkSpec))
    assert caught.value.field and caught.value.field.startswith("spec.open") and caught.value.hint


def test_an_entry_of_what_a_network_opens_is_bounded() -> None:
    with pytest.raises(InvalidInput, match="128"):
        read_strict({"cidr": "10.0.0.0/24", "open": ["tcp:" + "1" * 200]}, NetworkSpec)


def test_what_a_network_opens_takes_a_permission_in_all_projects_but_for_the_server_s_own_services() -> None:
    def opening(*open: str) -> NetworkSpec:
        return NetworkSpec(cidr="10.0.0.0/24", open=list(open))

    assert list(find_rights(None, opening("api", "functions"))) == []
    assert [right for right, _ in find_rights(None, opening("api", "tcp:22"))] == ["node:update"]
    assert list(find_rights(opening("tcp:22"), opening("api", "tcp:22"))) == []
    assert [right for right, _ in find_rights(opening("tcp:22"), opening("tcp:23"))] == ["node:update"]


def test_hosts_are_opened_to_more_projects_only_with_that_permission() -> None:
    def shared(*open: str, projects: str = "") -> NetworkSpec:
        return NetworkSpec(cidr="10.0.0.0/24", open=list(open), shared_with=projects.split())

    assert list(find_rights(shared("api"), shared("api", projects="arts"))) == []
    assert len(list(find_rights(shared("tcp:22"), shared("tcp:22", projects="arts")))) == 1
    assert list(find_rights(shared("tcp:22", projects="arts law"), shared("tcp:22", projects="arts"))) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("machine", "microvm"),
        ("firmware", "uefi"),
        ("gpus", 1),
        ("iso", "cd"),
        ("screen", "yes"),
        ("pool", "big"),
        ("networks", []),
        ("user_data", "#cloud-config\n"),
    ],
)
def test_a_new_vm_that_could_never_start_warm_is_refused_and_later_changes_are_free(field: str, value: object) -> None:
    assert VM.admission.check_new is not None
    spec = VmSpec(image="tiny", boot="warm", **{field: value})  # type: ignore[arg-type]
    with pytest.raises(InvalidInput) as refused:
        VM.admission.check_new(spec)
    assert refused.value.field == f"spec.{field}" and "spec.boot" in (refused.value.hint or "")
    check_vm(spec)  # as of a VM that started warm and got it afterwards
    VM.admission.check_new(VmSpec(image="tiny", **{field: value}))  # type: ignore[arg-type]


@EVERY_KIND
def test_a_spec_that_has_only_defaults_beside_what_it_needs_can_be_written_back(kind: Kind) -> None:
    stored = msgspec.json.decode((Path(__file__).parent / "stored" / f"{kind.name}.{kind.schema}.json").read_bytes())
    needed = {field.encode_name for field in msgspec.structs.fields(kind.spec) if field.required}
    spec = msgspec.convert({name: stored["spec"][name] for name in needed}, kind.spec)
    missing = [one for one in find_problems(msgspec.to_builtins(spec), kind.spec)[1] if "is missing" in str(one)]
    assert not missing


def test_agents_know_all_kinds_of_workloads_without_the_registry() -> None:
    assert {name: kind.workload for name, kind in WORKLOAD_KINDS.items()} == WORKLOADS


@pytest.mark.parametrize("kind", ["vm", "container"])
def test_a_port_that_is_published_by_force_takes_a_right_of_the_fabric(kind: str) -> None:
    access, spec = BY_NAME[kind].access, BY_NAME[kind].spec
    assert access.further_rights is not None
    forced = spec(image="tiny", publish=["22:22"], force_publish=True)
    assert list(access.further_rights(None, forced)) == [("node:update", "publish ports by force")]
    assert not list(access.further_rights(forced, forced)) and not list(access.further_rights(None, spec(image="tiny")))
    more = spec(image="tiny", publish=["22:22", "53:53"], force_publish=True)
    assert list(access.further_rights(forced, more)) == [("node:update", "publish ports by force")]
