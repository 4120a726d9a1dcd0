"""What a deployment that is deleted hears of its instances."""

from __future__ import annotations

import msgspec

from weft.controllers.deployment.controller import Deployments
from weft.informer.view import Changed, Item, View
from weft.objects.envelope import Envelope, Ref

SPEC = msgspec.Raw(b'{"image": "tiny"}')


def test_a_deployment_hears_of_the_vm_that_it_let_go() -> None:
    """It is deleted once it has no instance, and the VM that it adopted goes on without it."""
    owner = Ref(kind="deployment", project="default", name="web", uid="d")
    labels = {"weft/deployment": "web"}
    own = Envelope(kind="vm", name="web", uid="v", project="default", spec=SPEC, owner=owner, labels=labels)
    free = msgspec.structs.replace(own, owner=None, labels={})
    deployments = Deployments.__new__(Deployments)
    change = Changed("/vm/default/web", Item(own), Item(free))
    assert list(deployments.route(View(()), change)) == ["/deployment/default/web"]
