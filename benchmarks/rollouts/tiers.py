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
${NEXT:+behind=/\\$(wget -qO- http://$NEXT/) || status='502 Bad Gateway'}
printf 'Status: %s\\\\r\\\\n\\\\r\\\\n%s\\\\n' "\\${status:-200 OK}" "$TIER$VERSION\\$behind"
CGI
chmod +x /tmp/w/cgi-bin/index.cgi
trap 'exit 0' TERM
httpd -f -p 8080 -h /tmp/w & wait
"""


class Shop:
    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.port, self.marks = cluster, cluster.free_port(), list[Mark]()
        cluster.ok("image", "build", "busybox")
        for name, replicas, following, more in (
            ("db", "1", "", ()),
            ("app", "3", "db", ()),
            ("web", "3", "app", ("--publish", f"{self.port}:80")),
        ):
            selector = ("--selector", f"app={name}", "--port", "80:8080", "--protocol", "http", "--drain", "2s")
            self.say("service", "create", name, *selector, *more)
            values = ("--env", f"TIER={name}", "--env", "VERSION=1", "--env", f"NEXT={following}")
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
        self.say("deployment", "update", "web", "--rollback-on-failure", "--env", "VERSION=2", mark="rolling: web 2")
        rest()
        parallel = ("--strategy", "blue-green", "--traffic-split", "10%", "--env", "VERSION=2")
        self.say("deployment", "update", "app", *parallel, mark="blue-green: app 2")
        rest()
        self.say("rollout", "resume", "app", mark="resume")
        rest()
        canary = ("--strategy", "canary", "--canary-percent", "20%,50%", "--success-threshold", "99%")
        canary += ("--monitor-duration", "30s", "--auto-promote")
        self.say("deployment", "update", "web", *canary, "--env", "VERSION=3", mark="canary: web 3")
        rest()
        self.say("deployment", "update", "web", "--env", "VERSION=4", "--env", "ERRORS=20", mark="canary: web 4, bad")
        rest()
        for name in ("web", "app"):
            self.say("rollout", "history", name)
        self.say("rollout", "explain", "web")
        print(f"{len(load.requests)} requests; failed: {Counter((one.status, one.said) for one in load.failures())}")


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
