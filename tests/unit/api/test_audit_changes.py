"""What of a request is in the audit log: which requests, which changes, and never a secret."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from weft.api.audit.changes import MOST_BYTES, describe_objects
from weft.api.request.call import Change
from weft.api.routes import ROUTES, find_route
from weft.kinds.registry import BY_NAME, KINDS
from weft.objects.envelope import Envelope
from weft.objects.spec_change import FieldChange
from weft.telemetry.audit.bound import MOST_ADDRESSES, MOST_LINES, MOST_OF_ALL, MOST_OF_ONE, Bound


def make_envelope(kind: str = "vm", labels: dict[str, str] | None = None, **spec: Any) -> Envelope:
    return BY_NAME[kind].make(
        "web", msgspec.convert(spec, BY_NAME[kind].spec), 1.0, uid="u", project="lab", labels=labels or {}
    )


def change(path: str, old: Any, new: Any) -> FieldChange:
    return FieldChange(path, old, new, "live")


@pytest.mark.parametrize(
    ("method", "path", "when", "verb", "about"),
    [
        ("POST", "/v1/projects/lab/vms", "always", "create", "vm/lab/"),
        ("POST", "/v1/projects/lab/vms:batch", "always", "batch", "vm/lab/"),
        ("PATCH", "/v1/projects/lab/vms/web", "always", "change", "vm/lab/web"),
        ("DELETE", "/v1/nodes/n1", "always", "delete", "node//n1"),
        ("POST", "/v1/projects/lab/vms/web:exec", "always", "exec", "vm/lab/web"),
        ("POST", "/v1/projects/lab/vms/web:console", "always", "console", "vm/lab/web"),
        ("POST", "/v1/projects/lab/vms/web:logs", "by people", "logs", "vm/lab/web"),
        ("POST", "/v1/projects/lab/vms/web:metrics", "refused", "metrics", "vm/lab/web"),
        ("GET", "/v1/server/logs/api", "by people", "logs", "server//api"),
        ("GET", "/v1/projects/lab/vms/web", "refused", "read", "vm/lab/web"),
        ("GET", "/v1/tokens", "by people", "read", "token//"),
        ("GET", "/v1/projects/lab/secrets/s", "by people", "read", "secret/lab/s"),
        ("GET", "/v1/projects/lab/volumes/v", "refused", "read", "volume/lab/v"),
        ("GET", "/v1/audit", "by people", "read", "audit//"),
        ("GET", "/v1/audit:verify", "by people", "verify", "audit//"),
        ("GET", "/v1/blobs/ab", "by people", "read", "image//"),
        ("POST", "/v1/nodes/n1:report", "refused", "report", "node//n1"),
        ("POST", "/v1/nodes/n1:secrets", "always", "secrets", "node//n1"),
        ("POST", "/v1/nodes/n1:renew", "always", "renew", "node//n1"),
        ("POST", "/v1/projects/lab/recommendations", "refused", "create", "recommendation/lab/"),
        ("POST", "/v1/apply", "always", "apply", "//"),
        ("POST", "/v1/join", "always", "join", "//"),
        ("PUT", "/v1/projects/lab/code/ab", "always", "upload", "function/lab/"),
        ("GET", "/v1/projects/lab/code/ab", "refused", "upload", "function/lab/"),
        ("POST", "/v1/users/ann:passwd", "always", "passwd", "user//ann"),
        ("POST", "/v1/login", "always", "login", "//"),
        ("POST", "/api/v1/query", "refused", "read", "metric//"),
        ("POST", "/v1/blobs/{}", "always", "create", "//"),
        ("GET", "*", "refused", "read", "//"),
        ("GET", "/v1/healthz", "refused", "read", "//"),
        ("POST", "/no/such/place", "always", "create", "//"),
        ("BREW", "/v1/projects/lab/vms", "always", "brew", "vm/lab/"),
    ],
)
def test_which_requests_are_recorded(method: str, path: str, when: str, verb: str, about: str) -> None:
    topic = find_route(method, path).topic
    assert (topic.when, topic.verb, f"{topic.kind}/{topic.project}/{topic.name}") == (when, verb, about)


# Each says what things are called, are like, or how much there is of them, and nothing that a guest wrote.
UNRECORDED = {
    *("/v1/gateway", "/v1/healthz", "/v1/whoami", "/v1/link", "/v1/kinds", "/v1/openapi.json", "/", "/assets/{name}"),
    *("/v1/accounting", "/v1/projects/{project}/accounting", "/v1/usage", "/v1/topology", "/v1/events"),
    *("/metrics", "/api/v1/query", "/api/v1/query_range", "/api/v1/series", "/api/v1/labels"),
    *("/api/v1/label/{name}/values", "/v1/traces", "/v1/traces/{trace}"),
    *("/v1/projects/{project}/code/{sha256}", "/v1/projects/{project}/onnx/{sha256}", "/v1/packages/{sha256}"),
    "/v1/rotations",  # when keys were rotated, which whoever asks may read
    "/v1/projects/{project}/networktrace",  # what the objects say, which whoever asks may read
    # These record what only few may read by the kinds that they turn out to be about.
    *(f"/v1/dashboard/{name}" for name in ("search", "stream", "summary", "table")),
}


def test_whatever_opens_a_guest_or_shows_what_it_wrote_is_recorded() -> None:
    """Unless it has figures alone, or what everyone may see: whoever adds a verb or a route has to say so."""
    figures = set[str]()
    for kind in KINDS:
        base = f"/v1/projects/lab/{kind.plural}" if kind.scope == "project" else f"/v1/{kind.plural}"
        for verb in kind.verbs:
            topic = find_route("POST", f"{base}/web:{verb.name}").topic
            assert (topic.kind, topic.verb) == (kind.name, verb.name)
            if topic.when == "refused":
                assert verb.figures and verb.stream, (kind.name, verb.name)
                figures.add(verb.name)
    assert figures == {"flows", "metrics"}
    others = [route for route in ROUTES if route.where not in ("nodes", "servers")]
    named = {"sha256": "ab", "process": "api", "trace": "ab" * 16}
    found = {
        one.path
        for one in others
        if find_route(one.method, one.path.format_map({"project": "lab", "name": "web", **named})).topic.when
        == "refused"
    }
    assert found == UNRECORDED


def test_a_new_object_is_described_by_what_differs_from_the_defaults() -> None:
    envelope = make_envelope(image="tiny", cpu=3, labels={"tier": "gold"})
    [described], left_out = describe_objects([Change(envelope, "created")])
    assert (described.kind, described.name, described.uid, described.action) == ("vm", "web", "u", "created")
    found = {one.field: one.new for one in described.changes}
    assert found == {"spec.image": "tiny", "spec.cpu": 3, "labels": {"tier": "gold"}} and left_out == 0


def test_many_new_objects_are_described_as_each_of_them_alone() -> None:
    first, other = make_envelope(image="tiny", cpu=3), make_envelope(image="other")
    batch = [first, msgspec.structs.replace(first, name="db"), other, msgspec.structs.replace(first, labels={"a": "b"})]
    changed = [Change(one, "created") for one in batch]
    described, left_out = describe_objects(changed)
    assert described == [alone for change in changed for alone in describe_objects([change])[0]] and left_out == 0
    described, left_out = describe_objects([Change(first, "created")] * 1000)
    assert len(described) == 1000 and left_out > 800
    assert len(msgspec.json.encode(described)) < MOST_BYTES + 1000 * 80


def test_a_change_has_both_values_and_labels_too() -> None:
    envelope = make_envelope(image="tiny", labels={"tier": "gold"})
    [described], _ = describe_objects([Change(envelope, "updated", [change("spec.cpu", 1, 2)], {"tier": "tin"})])
    assert [(one.field, one.old, one.new) for one in described.changes] == [
        ("spec.cpu", 1, 2),
        ("labels", {"tier": "tin"}, {"tier": "gold"}),
    ]


SECRET = "Tr0ub4dor-3"


@pytest.mark.parametrize(
    "noted",
    [
        Change(make_envelope(image="tiny", user_data=f"#cloud-config\npassword: {SECRET}"), "created"),
        Change(make_envelope("container", image="a", env={"DB_PASSWORD": SECRET, "HOME": SECRET}), "created"),
        Change(make_envelope("container", image="a", command=["run", SECRET]), "created"),
        Change(make_envelope("container", image="a", args=[SECRET]), "created"),
        Change(make_envelope("job", task={"image": "a", "command": ["run"], "args": [SECRET]}), "created"),
        Change(make_envelope("container", image="a"), "updated", [change("spec.args", ["a"], [SECRET])]),
        Change(make_envelope("image", url=f"https://me:{SECRET}@example.org/x.tar"), "created"),
        Change(make_envelope("secret", values={}, sealed={"password": SECRET}), "created"),
        Change(make_envelope(image="a"), "updated", [change("spec.user_data", f"a{SECRET}", f"b{SECRET}")]),
        Change(make_envelope(image="a"), "updated", [change("spec.env.HOME", SECRET, None)]),
        Change(make_envelope(image="a"), "updated", [change("spec.sealed.a.b", None, SECRET)]),
        Change(make_envelope(image="a"), "updated", [change("spec.values", {"k": SECRET}, {"k": "", "l": SECRET})]),
        Change(make_envelope(image="a", labels={"x": f"password={SECRET}"}), "created"),
    ],
)
def test_no_secret_is_in_a_record(noted: Change) -> None:
    described, _ = describe_objects([noted])
    text = msgspec.json.encode(described).decode()
    assert SECRET not in text
    assert "hidden" in text


def test_a_secret_s_keys_are_told() -> None:
    [described], _ = describe_objects([Change(make_envelope("secret", sealed={"password": "x"}), "created")])
    assert [(one.field, one.new) for one in described.changes] == [("spec.values", {"password": "(hidden)"})]


def test_a_record_is_bounded_whatever_changes() -> None:
    long = "x" * 5_000_000
    described, left_out = describe_objects(
        [Change(make_envelope(image="a"), "updated", [change("spec.a", long, [long])]) for _ in range(1000)]
    )
    assert len(described) == 1000 and left_out > 900
    assert len(msgspec.json.encode(described)) < MOST_BYTES + 1000 * 80
    assert len(described[0].changes[0].old) <= 1025 and described[-1].changes == []


def test_a_stranger_s_requests_are_recorded_up_to_a_bound_and_then_counted() -> None:
    bound = Bound()
    assert sum(bound.takes("10.0.0.1") for _ in range(5000)) == MOST_OF_ONE
    assert bound.takes("10.0.0.2")
    assert bound.end_minute() == [("10.0.0.1", 5000 - MOST_OF_ONE)]
    assert bound.takes("10.0.0.1") and bound.end_minute() == []


def test_many_strangers_are_bounded_together_and_a_network_of_ipv6_counts_as_one() -> None:
    bound = Bound()
    taken = sum(bound.takes(f"10.{n >> 8}.{n & 255}.1") for n in range(3 * MOST_ADDRESSES))
    assert taken == MOST_OF_ALL
    lines = bound.end_minute()
    assert len(lines) <= MOST_LINES + 1
    assert lines[-1][0] == "" and sum(count for _, count in lines) == 3 * MOST_ADDRESSES - MOST_OF_ALL
    assert sum(bound.takes(f"2001:db8::{n:x}") for n in range(1, 100)) == MOST_OF_ONE
    assert bound.takes("2001:db8:0:1::1") and bound.takes("fe80::1%eth0") and bound.takes("no:address")
