"""``python -m benchmarks.rollouts.tiers FILE.svg``: the shop of three tiers that the guide to rollouts updates by each strategy
while it is asked; prints what the commands say, and draws which versions answered."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.cluster.cluster import Cluster, lay_out
from tests.cluster.load import Load, ask_steadily, await_answers

from benchmarks.rollouts.plot import Mark, draw

RATE, REST_SECONDS = 20.0, 8.0
TIER = """mkdir -p /tmp/w/cgi-bin
cat >/tmp/w/cgi-bin/index.cgi <<CGI
#!/bin/sh
[ \\$((RANDOM % 100)) -ge ${ERRORS:-0} ] || status='500 Internal Server Error'
${NEXT:+behind=/\\$(wget -qO- http://$NEXT/ 2>&1) || { status='502 Bad Gateway'; behind=\\$(echo "\\$behind" | tr ' ' _); \}}
printf 'Status: %s\\\\r\\\\n\\\\r\\\\n%s\\\\n' "\\${status:-200 OK}" "$TIER$VERSION\\$behind"
CGI
chmod +x /tmp/w/cgi-bin/index.cgi
trap 'exit 0' TERM
httpd -f -p 8080 -h /tmp/w & wait
"""


NEXT = {"db": "", "app": "db", "web": "app"}


def name_values(tier: str, version: int) -> tuple[str, ...]:
    """All variables of a tier, as ``--env`` replaces all that it had."""
    return "--env", f"TIER={tier}", "--env", f"VERSION={version}", "--env", f"NEXT={NEXT[tier]}"


class Shop:
    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.port, self.marks = cluster, cluster.free_port(), list[Mark]()
        cluster.ok("image", "build", "busybox")
        for name, replicas, more in (
            ("db", "1", ()),
            ("app", "3", ()),
            ("web", "3", ("--publish", f"{self.port}:80")),
        ):
            selector = ("--selector", f"app={name}", "--port", "80:8080", "--protocol", "http", "--drain", "2s")
            self.say("service", "create", name, *selector, *more)
            values = name_values(name, 1)
            size = ("--image", "busybox", "--memory", "32M", "--cpu", "0.2", "--grace", "2s")
            words = ("--replicas", replicas, "--label", f"app={name}", *size, *values)
            self.say("deployment", "create", name, *words, "--", "sh", "-c", TIER)
        nodes = ("n1", "n2", "n3")
        self.places = [f"{cluster.object('node', name)['report']['address']}:{self.port}" for name in nodes]
        await_answers(self.places)

    def say(self, *words: str, mark: str = "") -> None:
        """Print the command and what it says."""
        if mark:
            self.marks.append(Mark(time.time(), mark))
        print("$ weft " + " ".join(words).replace(TIER, "'$(cat tier.sh)'"), flush=True)
        done = self.cluster.run(*words, timeout=700)
        print((done.stdout + done.stderr).decode(), end="", flush=True)

    def update(self, load: Load) -> None:
        rest = lambda: time.sleep(REST_SECONDS)  # noqa: E731
        rest()
        self.say("deployment", "update", "web", "--rollback-on-failure", *name_values("web", 2), mark="rolling: web 2")
        rest()
        parallel = ("--strategy", "blue-green", "--traffic-split", "10%", *name_values("app", 2))
        self.say("deployment", "update", "app", *parallel, mark="blue-green: app 2")
        rest()
        self.say("rollout", "resume", "app", mark="resume")
        rest()
        canary = ("--strategy", "canary", "--canary-percent", "20%,50%", "--success-threshold", "99%")
        canary += ("--monitor-duration", "30s", "--auto-promote")
        self.say("deployment", "update", "web", *canary, *name_values("web", 3), mark="canary: web 3")
        rest()
        bad = (*name_values("web", 4), "--env", "ERRORS=20")
        self.say("deployment", "update", "web", *bad, mark="canary: web 4, bad")
        rest()
        for name in ("web", "app"):
            self.say("rollout", "history", name)
        self.say("rollout", "explain", "web")
        failed = Counter((one.status, one.said) for one in load.failures())
        print(f"{len(load.requests)} requests; failed: {dict(failed)}")


def main(picture: Path) -> int:
    folder = Path(tempfile.mkdtemp(prefix="weft-shop-"))
    folder.chmod(0o755)
    cluster = lay_out(folder)
    try:
        cluster.up()
        shop = Shop(cluster)
        with ask_steadily(shop.places, RATE) as load:
            shop.update(load)
        picture.write_text(
            draw(load.requests, shop.marks, "a shop of three tiers, updated by each strategy under load")
        )
    finally:
        cluster.down()
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
