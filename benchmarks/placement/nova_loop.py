"""nova's own filter and weigher loop over fake host states: run by the interpreter of a venv that has ``nova``.

``nova_loop.py HOSTS SECONDS`` prints JSON: how many requests it decided and the CPU seconds that took. Its default filters
and weighers, as the scheduler drives them: filter, weigh, take the best, consume. No database, no messages, no placement
service: what is left is the loop.
"""

from __future__ import annotations

import json
import logging
import random
import sys
import time

import nova.conf
import nova.servicegroup
from nova import objects
from nova.scheduler import filters, host_manager, weights


def main(hosts: int, seconds: float) -> None:
    logging.disable(logging.CRITICAL)

    conf = nova.conf.CONF
    conf([], project="nova", default_config_files=[])
    objects.register_all()
    draw = random.Random(1)
    states = []
    for number in range(hosts):
        state = host_manager.HostState(f"h{number:06}", f"h{number:06}", "cell")
        cores = draw.choice([16, 32, 64, 96, 128])
        ram = cores * 1024 * draw.choice([2, 4, 8])
        state.uuid = f"00000000-0000-0000-0000-{number:012}"
        state.vcpus_total, state.total_usable_ram_mb, state.free_ram_mb = cores, ram, ram
        state.total_usable_disk_gb, state.free_disk_mb = 4000, 4000 * 1024
        state.cpu_allocation_ratio, state.ram_allocation_ratio, state.disk_allocation_ratio = 1.0, 1.0, 1.0
        state.service = {"disabled": False, "host": state.host, "report_count": 1}
        state.stats, state.hypervisor_type, state.hypervisor_version = {}, "QEMU", 8000000
        state.supported_instances = [["x86_64", "kvm", "hvm"]]
        state.metrics = objects.MonitorMetricList(objects=[])
        states.append(state)
    # Whether a service is up is asked of the database otherwise; here all are.
    up = type("Up", (), {"service_is_up": staticmethod(lambda service: True)})
    nova.servicegroup.API = lambda *given, **named: up()
    scheduler = conf.filter_scheduler
    handler = filters.HostFilterHandler()
    classes = {c.__name__: c for c in handler.get_matching_classes(scheduler.available_filters)}
    chosen = [classes[name]() for name in scheduler.enabled_filters]
    weighing = weights.HostWeightHandler()
    weighers = [c() for c in weighing.get_matching_classes(scheduler.weight_classes)]

    def ask(number: int) -> objects.RequestSpec:
        flavor = objects.Flavor(
            name="f",
            vcpus=1 + number % 4,
            memory_mb=256 * (1 + number % 16),
            root_gb=1,
            ephemeral_gb=0,
            swap=0,
            extra_specs={},
        )
        image = objects.ImageMeta(properties=objects.ImageMetaProps())
        return objects.RequestSpec(
            flavor=flavor,
            image=image,
            num_instances=1,
            instance_group=None,
            limits=objects.SchedulerLimits(),
            scheduler_hints={},
            pci_requests=objects.InstancePCIRequests(requests=[]),
            numa_topology=None,
            requested_destination=None,
            availability_zone=None,
            force_hosts=None,
            force_nodes=None,
            ignore_hosts=None,
            retry=None,
            instance_uuid=f"10000000-0000-0000-0000-{number:012}",
            project_id="p",
            user_id="u",
            requested_resources=[],
            request_level_params=objects.RequestLevelParams(),
        )

    decided = 0
    spent = 0.0
    while spent < seconds or decided < 3:
        spec = ask(decided)
        begun = time.process_time()
        left = list(handler.get_filtered_objects(chosen, states, spec, 0))
        best = weighing.get_weighed_objects(weighers, left, spec)[0].obj
        best.consume_from_request(spec)
        spent += time.process_time() - begun
        decided += 1
        if len(left) != hosts:
            raise SystemExit(f"{len(left)} of {hosts} hosts passed")
    print(
        json.dumps(
            {
                "decided": decided,
                "seconds": spent,
                "filters": [type(each).__name__ for each in chosen],
                "weighers": [type(each).__name__ for each in weighers],
            }
        )
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
