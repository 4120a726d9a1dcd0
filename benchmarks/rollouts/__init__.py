"""A rolling update of six VMs behind an HTTP service, while they are asked 200 times a second from outside, by three nodes'
published ports in turn; then one to a version that fails each twentieth request, and goes back by itself. Where the guests alone
don't carry 400 requests a second, they are asked half as often as they can answer: a seventh that boots takes its part."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.cluster.cluster import Cluster, lay_out
from tests.cluster.load import Load, Request, ask_steadily

from benchmarks.measurement import Figure, Measurement
from benchmarks.rollouts.direct import find_capacity

REPLICAS, RATE, SHARE = 6, 200.0, 0.5
PATHS = ["/"] * 19 + ["/cgi-bin/buy"]  # what the bad version fails is one request in twenty
WARM_SECONDS, BACK_SECONDS, FAILED_SHARE = 5.0, 60.0, 0.002
# What a guest does at its first boot: a page, and a purchase that ends well or doesn't.
BOOT = """#!/bin/sh
mkdir -p /etc/weft/start.d /srv/web/cgi-bin
echo VERSION >/srv/web/index.html
cat >/srv/web/cgi-bin/buy <<'CGI'
#!/bin/sh
printf 'Status: STATUS\\r\\nContent-Type: text/plain\\r\\n\\r\\nVERSION\\n'
CGI
cat >/etc/weft/start.d/web <<'START'
#!/bin/sh
exec httpd -f -p 8080 -h /srv/web
START
chmod +x /srv/web/cgi-bin/buy /etc/weft/start.d/web
"""
_SIZE = ("--image", "tiny", "--memory", "128M", "--cpu", "0.5", "--label", "app=web")


class Shop:
    """Six VMs behind the service web; ``places``: where it is asked."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, port = cluster, cluster.free_port()
        words = ("--selector", "app=web", "--port", "80:8080", "--protocol", "http", "--drain", "2s")
        cluster.ok("service", "create", "web", *words, "--publish", f"{port}:80")
        number = ("--replicas", str(REPLICAS), "--rollback-on-failure", "--timeout", "10m")
        made = ("--vm", *_SIZE, *number, "--user-data", self.write("v1"))
        cluster.ok("deployment", "create", "web", *made, timeout=700)
        self.places = [f"{cluster.object('node', name)['report']['address']}:{port}" for name in ("n1", "n2", "n3")]

    def write(self, version: str, status: str = "200 OK") -> str:
        """The file with what a guest of that version does at its first boot."""
        path = self.cluster.folder / f"{version}.sh"
        path.write_text(BOOT.replace("VERSION", version).replace("STATUS", status))
        return str(path)

    def update(self, version: str, status: str = "200 OK") -> tuple[float, str]:
        """When it was asked for, and the phase in which it ended."""
        began = time.time()
        words = ("deployment", "update", "web", "--timeout", "10m", "--user-data", self.write(version, status))
        done = self.cluster.run(*words, timeout=700)
        found = self.cluster.object("deployment", "web")["status"]
        print(f"  {version}: {found['phase']}: {found['verdict']}; exit code {done.returncode}", flush=True)
        if done.returncode not in (0, 1):
            raise SystemExit(done.stderr.decode())
        return began, f"{found['phase']}: {found['verdict']}"


def find_rate(shop: Shop) -> tuple[float, float]:
    """At which rate it is asked, and which one the guests alone carry."""
    capacity = find_capacity(shop.cluster, "web", 8080, PATHS)
    return min(RATE, max(1.0, round(SHARE * capacity))), capacity


def describe_update(
    load: Load, began: float, took: float, end: str, rate: float, wanted: float, capacity: float
) -> list[Figure]:
    asked, failed = load.since(began), load.failures(began)
    return [
        Figure(
            f"requests a second to {REPLICAS} VMs, of which the guests alone carry {capacity:.0f}",
            f"{rate:.0f}",
            f"{wanted:.0f} were to be sent",
            f"{rate / capacity:.2f}×",
            goal=f"{RATE:.0f}",
            kept=rate >= 0.95 * RATE,
        ),
        Figure(
            f"rolling update of {REPLICAS} VMs: {len(asked)} requests in {took:.0f} s",
            f"{len(failed)} failed",
            f"slowest {max(one.seconds for one in asked) * 1000:.0f} ms",
            f"{_name(failed)}; {end[:150]}",
            goal="0",
            kept=not failed and end.startswith("Promoted"),
        ),
    ]


def describe_return(load: Load, began: float, took: float, end: str, version: str) -> list[Figure]:
    asked, failed = load.since(began), load.failures(began)
    bad = [one for one in asked if one.said == version]
    back = bad[-1].began - bad[0].began if bad else 0.0
    share = len(failed) / len(asked)
    return [
        Figure(
            "a version that fails 5 %: from its first answer until nobody gets one",
            f"{back:.0f} s",
            f"{len(bad)} requests; {end.partition(';')[0]}",
            goal=f"≤ {BACK_SECONDS:.0f} s",
            kept=back <= BACK_SECONDS and end.startswith("RolledBack"),
        ),
        Figure(
            f"…: of {len(asked)} requests from the order until it was back, {took:.0f} s",
            f"{share * 100:.2f} % failed",
            _name(failed),
            goal=f"≤ {FAILED_SHARE * 100:.1f} %",
            kept=share <= FAILED_SHARE,
        ),
    ]


def _name(failed: Sequence[Request]) -> str:
    found = Counter(one.status for one in failed)
    return ", ".join(f"{number} × {status}" for status, number in sorted(found.items())) or "–"


def measure() -> Measurement:
    folder = Path(tempfile.mkdtemp(prefix="weft-rollouts-"))
    folder.chmod(0o755)
    cluster = lay_out(folder)
    try:
        cluster.up()
        shop = Shop(cluster)
        wanted, capacity = find_rate(shop)
        with ask_steadily(shop.places, wanted, PATHS) as load:
            time.sleep(WARM_SECONDS)
            began, end = shop.update("v2")
            took = time.time() - began
            time.sleep(WARM_SECONDS)
            rate = len(load.requests) / (time.time() - load.requests[0].began)
            figures = describe_update(load, began, took, end, rate, wanted, capacity)
            began, end = shop.update("v3", "500 Internal Server Error")
            figures += describe_return(load, began, time.time() - began, end, "v3")
        guests = str(cluster.object("node", "n1")["report"]["accelerator"]).upper()
    finally:
        cluster.down()
        shutil.rmtree(folder, ignore_errors=True)
    about = " ".join((__doc__ or "").split())
    return Measurement(
        "rollouts", f"{about} Metrics by the defaults; {rate:.0f} requests a second were sent ({guests}).", figures
    )
