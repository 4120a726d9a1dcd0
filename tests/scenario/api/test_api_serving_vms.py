"""The VM that has a deployment's published ports isn't deleted alone, and no other instance gets any."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from tests.scenario.api_lab import ApiLab, make_image, make_vm

from weft.kinds.fields.deployment.status import DeploymentStatus
from weft.objects.errors import IllegalTransition, NotFound


def test_a_vm_that_has_the_ports_of_its_deployment_is_not_deleted_alone_and_no_other_instance_gets_ports(
    tmp_path: Path,
) -> None:
    lab = ApiLab(tmp_path)
    try:
        lab.client.create(make_image())
        lab.client.create({"kind": "network", "name": "blue", "spec": {"cidr": "10.9.0.0/24"}})
        lab.client.create(make_vm("web", networks=["blue"]))
        template = {"image": "tiny", "networks": ["blue"]}
        spec = {"workload": "vm", "adopt": "web", "replicas": 1, "template": template}
        lab.client.create({"kind": "deployment", "name": "web", "spec": spec})
        for name, publish in (("web-2-0", ["18080:80"]), ("other", ["18081:80"])):
            lab.client.create(make_vm(name, networks=["blue"], publish=publish))
        deployment, serving = lab.stored("/deployment/default/web"), lab.stored("/vm/default/web-2-0")
        assert deployment is not None
        assert serving is not None
        deployment.status = msgspec.Raw(msgspec.json.encode(DeploymentStatus(holder="web-2-0")))
        serving.owner = deployment.ref
        for envelope in (deployment, serving):
            lab.put(envelope)
        with pytest.raises(IllegalTransition, match="vm/web-2-0 serves for deployment/web") as refused:
            lab.client.delete("vm", "web-2-0")
        assert (refused.value.token, "weft rollout undo web" in str(refused.value.hint)) == ("isServing", True)
        assert not lab.client.get("vm", "web-2-0").get("deleting_since")
        lab.client.delete("vm", "other")
        lab.client.patch("vm", "web-2-0", {"spec": {"publish": ["18082:80"]}})
        for adopt, hint in (("web", "weft vm set web-3-0 --publish"), ("", "weft service create")):
            deployment.spec = msgspec.Raw(msgspec.json.encode({**spec, "adopt": adopt}))
            deployment.status = msgspec.Raw(msgspec.json.encode(DeploymentStatus(holder="web-3-0" if adopt else "")))
            lab.put(deployment)
            with pytest.raises(IllegalTransition, match="whose next update would end port 18083:80 with it") as refused:
                lab.client.patch("vm", "web-2-0", {"spec": {"publish": ["18082:80", "18083:80"]}})
            assert hint in str(refused.value.hint)
        lab.client.patch("vm", "web-2-0", {"spec": {"publish": []}})
        lab.client.delete("vm", "web-2-0")
        with pytest.raises(NotFound):
            lab.client.delete("vm", "nobody")
    finally:
        lab.close()
