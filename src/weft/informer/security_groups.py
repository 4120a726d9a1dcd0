"""A workload's security groups, resolved to what its node needs. For the scheduler, and the controller that updates them. Pure."""

from __future__ import annotations

from weft.informer.view import Item, View
from weft.informer.workloads import spec_of
from weft.kinds.allocation import AllocatedGroup, AllocatedRule
from weft.kinds.securitygroup import SELF, Rule, SecurityGroupSpec, read_rules
from weft.objects.identity import object_key


def read_groups(view: View, workload: Item) -> list[AllocatedGroup] | str:
    """The groups with their rules, or the name of a missing one. A rule that names a missing group allows nothing."""
    groups = []
    for name in spec_of(workload).security_groups:
        group = view.get(object_key("securitygroup", workload.envelope.project, name))
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
