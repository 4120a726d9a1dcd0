"""A VM's security groups, resolved to what its node needs. For those who place it and those who keep it so. Pure."""

from __future__ import annotations

from weft.informer.view import Item, View
from weft.informer.workloads import spec_of
from weft.kinds.allocation import AllocatedGroup, AllocatedRule
from weft.kinds.securitygroup import SELF, Rule, SecurityGroupSpec, read_rules
from weft.objects.identity import object_key


def read_groups(view: View, vm: Item) -> list[AllocatedGroup] | str:
    """The groups, rules and all, or the name of the one that isn't there. A rule about a group that isn't there allows
    nothing."""
    groups = []
    for name in spec_of(vm).security_groups:
        group = view.get(object_key("securitygroup", vm.envelope.project, name))
        if group is None:
            return name
        ingress, egress = read_rules(group.spec(SecurityGroupSpec))
        groups.append(
            AllocatedGroup(
                name=name,
                uid=group.uid,
                ingress=[allowed for rule in ingress if (allowed := _resolve(view, group, rule)) is not None],
                egress=[allowed for rule in egress if (allowed := _resolve(view, group, rule)) is not None],
            )
        )
    return groups


def _resolve(view: View, group: Item, rule: Rule) -> AllocatedRule | None:
    uid = None
    if rule.group == SELF:
        uid = group.uid
    elif rule.group is not None:
        other = view.get(object_key("securitygroup", group.envelope.project, rule.group))
        if other is None:
            return None
        uid = other.uid
    return AllocatedRule(
        protocol=rule.protocol, first_port=rule.first_port, last_port=rule.last_port, cidr=rule.cidr, group_uid=uid
    )
