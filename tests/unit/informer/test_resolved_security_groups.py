"""A VM's security groups as its node is told of them: who a rule names, and that one about nobody lets nobody in."""

from __future__ import annotations

import msgspec

from weft.informer.security_groups import read_groups
from weft.informer.view import Item, View, make_view
from weft.kinds.allocation import AllocatedRule
from weft.kinds.securitygroup import SecurityGroupSpec
from weft.kinds.vm import VmSpec
from weft.objects.envelope import Envelope


def put(view: View, kind: str, name: str, spec: msgspec.Struct, project: str = "default") -> Item:
    raw = msgspec.Raw(msgspec.json.encode(spec))
    item = Item(Envelope(kind=kind, name=name, uid=f"{project} {name}", project=project, spec=raw))
    view.put_item(item.key, item)
    return item


def test_a_rule_lets_in_the_group_that_it_names_in_its_project_and_nobody_if_there_is_none() -> None:
    view = make_view()
    rules = ["tcp:80 from group:web", "tcp:81 from group:self", "tcp:82 from group:nobody", "tcp:83 from 10.0.0.0/8"]
    put(view, "securitygroup", "db", SecurityGroupSpec(ingress=rules, egress=[]))
    put(view, "securitygroup", "web", SecurityGroupSpec())
    put(view, "securitygroup", "nobody", SecurityGroupSpec(), project="another")
    vm = put(view, "vm", "v", VmSpec(image="tiny", security_groups=["db"]))
    groups = read_groups(view, vm)
    assert not isinstance(groups, str)
    assert [group.uid for group in groups] == ["default db"] and groups[0].egress == []
    assert groups[0].ingress == [
        AllocatedRule(protocol="tcp", first_port=80, last_port=80, cidr=None, group_uid="default web"),
        AllocatedRule(protocol="tcp", first_port=81, last_port=81, cidr=None, group_uid="default db"),
        AllocatedRule(protocol="tcp", first_port=83, last_port=83, cidr="10.0.0.0/8", group_uid=None),
    ]
    assert read_groups(view, put(view, "vm", "w", VmSpec(image="tiny", security_groups=["gone"]))) == "gone"
