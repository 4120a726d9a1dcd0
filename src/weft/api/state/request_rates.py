"""How many requests a second may name a project, by its quota, and how many writes a second a person may make.

The quotas are in memory here: a write of what no quota counts needn't ask the store for one. Its commit takes that there is none
(``Absent``): one that another API server has just stored makes it fail, and the next try reads it.

A project has a bucket of as many requests as its limit, which fills again within a second. Each API server counts its own. Only
projects with a limit have a bucket, and only requests of those with a right in the project count: nobody else can empty it.

A person, who is a user with all tokens together, or a token that belongs to no user, has a bucket of writes that holds enough for a
large batch. Nodes have none, nor have those who administer the whole fabric, who could raise the limit.
"""

from __future__ import annotations

import math

from weft.api.state.login_limits import Tries
from weft.contracts.clock import Clock
from weft.contracts.store import Absent, Precondition, Store
from weft.informer.prefix_cache import PrefixCache, of_envelope
from weft.kinds.quota import QUOTA, QuotaSpec, busy, quota_key
from weft.objects.envelope import Envelope, decode_part, encode_envelope
from weft.objects.errors import Throttled
from weft.objects.identity import kind_prefix
from weft.trust.credentials import Actor

WRITES_PER_SECOND = 200
BURST_SECONDS = 10  # worth of writes that a bucket holds
LEAST_BURST = 1_000  # a batch as large as may be
_QUOTAS = kind_prefix(QUOTA.name)
_EXACT_SECONDS = 1e-6  # what adding fractions leaves behind is less


class RequestRates:
    """``run`` follows the quotas."""

    def __init__(self, store: Store, clock: Clock) -> None:
        # By the quota's key; 0: it has no such limit.
        self._limits = PrefixCache(store, _QUOTAS, of_envelope(_find_limit), clock, self._changed)
        self.has_limits = False  # whether any project has a limit
        self._unseen = set[str]()  # quotas that are stored, and that the watch hasn't brought yet
        self._buckets: dict[str, tuple[int, Tries]] = {}  # by project: its limit then, and the bucket
        self._clock = clock
        self.run = self._limits.run

    def may_have_quota(self, key: str) -> bool:
        """Whether a quota may be stored at ``key``: True as well while the copy here doesn't follow the store."""
        return key in self._limits.found or key in self._unseen or not self._limits.live

    def expect(self, failed: Precondition) -> None:
        """A commit's precondition did not hold."""
        if isinstance(failed, Absent) and failed.key.startswith(_QUOTAS):
            self._unseen.add(failed.key)

    def note(self, quota: Envelope) -> None:
        """This process has committed ``quota``: it counts from now on."""
        self._limits.note(quota.key, encode_envelope(quota), quota.revision)

    def _changed(self, key: str) -> None:
        self._unseen.discard(key)
        self.has_limits = any(self._limits.found.values())

    def take(self, actor: Actor, project: str) -> None:
        """Count a request of ``actor``. Raises Throttled if the project has no more requests left at the moment. Those who may
        raise the limit have none."""
        limit = self._limits.found.get(quota_key(project))
        if not limit:
            self._buckets.pop(project, None)
            return
        if actor.permits(f"{QUOTA.name}:update", project) or not _has_role(actor, project):
            return
        known, bucket = self._buckets.get(project, (0, None))
        if bucket is None or known != limit:
            bucket = Tries(limit, 1 / limit)
            self._buckets[project] = limit, bucket
        now = self._clock.elapsed()
        wait = bucket.find_wait("", now)
        if wait > _EXACT_SECONDS:
            raise busy(project, "requests_per_second", limit, limit, wait)
        bucket.take("", now)


class WriteRates:
    """``rate``: writes a second; 0: no limit."""

    def __init__(self, rate: int = WRITES_PER_SECOND) -> None:
        self._rate = rate
        self._burst = max(rate * BURST_SECONDS, LEAST_BURST)
        self._buckets = Tries(self._burst, 1 / rate if rate else 0.0)

    def take(self, actor: Actor, now: float, count: int = 1) -> None:
        """Count writes of ``actor`` at ``now`` (monotonic seconds). Raises Throttled if they are too many at the moment."""
        if not self._rate or actor.kind != "person" or actor.administers_all:
            return
        wait = self._buckets.find_wait(actor.name, now, count)
        if wait > 0:
            seconds = math.ceil(wait)
            raise Throttled(
                f"{actor.name} writes too fast: {self._rate} objects a second, and {self._burst} in a burst, are allowed",
                reason="tooManyWrites",
                hint=f"try again in {seconds} s; weft server --writes-per-second sets the limit",
                details={"limit": self._rate},
                retry_after_seconds=seconds,
            )
        self._buckets.take(actor.name, now, count)


def _has_role(actor: Actor, project: str) -> bool:
    """Whether it may do anything in the project."""
    if actor.kind != "person" or (actor.limit is not None and actor.limit.project not in (None, project)):
        return False
    return any(grant.permissions and grant.project in (None, project) for grant in actor.grants)


def _find_limit(envelope: Envelope) -> int:
    return decode_part(envelope.spec, QuotaSpec).requests_per_second or 0
