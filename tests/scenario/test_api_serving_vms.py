"""The VM that has a deployment's published ports isn't deleted alone."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from tests.scenario.api_lab import DoorsLab, make_image, make_vm

from weft.kinds.fields.deployment.status import DeploymentStatus
from weft.objects.errors import IllegalTransition, NotFound


def test_a_vm_that_has_the_ports_of_its_deployment_is_not_deleted_alone(tmp_path: Path) -> None:
    lab = DoorsLab(tmp_path)
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
        deployment.status = msgspec.Raw(msgspec.json.encode(DeploymentStatus(holder="web-3-0")))
        lab.put(deployment)
        lab.client.delete("vm", "web-2-0")
        with pytest.raises(NotFound):
            lab.client.delete("vm", "nobody")
    finally:
        lab.close()
