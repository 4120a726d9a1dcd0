"""The CPU that guests get who may go anywhere."""

from __future__ import annotations

import msgspec

from weft.controllers.node.cpu_baseline import Cpus, choose_common
from weft.informer.view import Changed, Item
from weft.kinds.node import NodeReport
from weft.objects.envelope import Envelope

BIG = ("host@aa", "Haswell-v4", "Westmere-v1", "qemu64-v1")
OLD = ("host@bb", "Westmere-v1", "qemu64-v1")


def say(cpus: Cpus, name: str, models: tuple[str, ...] | None, accelerator: str = "kvm") -> set[str]:
    report = NodeReport(arch="x86_64", accelerator=accelerator, cpu_models=list(models or ()))
    envelope = Envelope(kind="node", name=name, uid=name, report=msgspec.Raw(msgspec.json.encode(report)))
    return set(cpus.note(Changed(name, None, Item(envelope) if models is not None else None)))


def test_nodes_that_are_alike_give_all_they_have() -> None:
    assert choose_common({"n1": BIG, "n2": BIG}) == "host@aa"


def test_nodes_that_differ_give_the_best_that_all_have() -> None:
    assert choose_common({"n1": BIG, "n2": OLD}) == "Westmere-v1"
    assert choose_common({"n1": BIG, "n2": ("host@cc",)}) == ""
    assert choose_common({}) == ""


def test_a_node_that_has_less_lowers_what_its_likes_give_and_nobody_else() -> None:
    cpus = Cpus()
    assert say(cpus, "n1", BIG) == {"n1"}
    assert say(cpus, "n2", BIG) == set()
    assert say(cpus, "emulated", ("max@10.0", "qemu64-v1"), "tcg") == {"emulated"}
    assert say(cpus, "n3", OLD) == {"n1", "n2", "n3"}
    assert [cpus.common(name) for name in ("n1", "n3", "emulated", "unheard")] == [
        *("Westmere-v1", "Westmere-v1", "max@10.0", ""),
    ]
    assert say(cpus, "n3", None) == {"n1", "n2"}
    assert cpus.common("n1") == "host@aa"
    assert say(cpus, "n4", ()) == set(), "a node that doesn't say what it has lowers nothing"


def test_a_node_that_joins_its_likes_late_hears_what_they_give() -> None:
    cpus = Cpus()
    say(cpus, "n1", BIG)
    say(cpus, "n2", OLD)
    say(cpus, "n4", BIG)
    assert cpus.common("n4") == "Westmere-v1"
