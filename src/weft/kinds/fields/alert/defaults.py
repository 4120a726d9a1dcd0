"""The rules that a new fabric begins with: ordinary objects, which people may change or delete. They see the whole fabric, so they
are in a project of their own, whose alerts only those see who have a role in all projects."""

from __future__ import annotations

from typing import Any

PROJECT = "fabric"
DESCRIPTION = "alert rules of the whole fabric"
# Those of fabrics that have the project, and no note of which rules they were given.
FIRST_RULES = (
    *("backup-failed", "certificate-expiring", "clock-off", "guest-killed-for-memory", "lease-at-risk"),
    *("migration-stuck", "node-disk-full", "node-memory-full", "node-silent", "pool-nearly-full"),
)
_LOSS = "weft_link_loss_ratio"
_MINUTE, _HOUR, _DAY = 60.0, 3600.0, 86_400.0


def list_default_rules() -> dict[str, dict[str, Any]]:
    """The specs by name."""
    return {
        "node-silent": _rule(
            "weft_node_up == 0 unless on (node) weft_node_autonomous == 1",
            _MINUTE,
            "critical",
            "node {{ $labels.node }} doesn't report: see weft describe node",
        ),
        "guests-waiting": _rule(
            "weft_node_guests_waiting == 1",
            _MINUTE,
            "warning",
            "guests of node {{ $labels.node }} wait for it: weft describe node/{{ $labels.node }} names them, and says why",
        ),
        "nodes-lost-together": _rule(
            "weft_node_loss_held == 1",
            0.0,
            "critical",
            "many nodes are silent together, so nothing of node {{ $labels.node }} restarts elsewhere automatically; if it is off: "
            "weft node confirm-off {{ $labels.node }}",
        ),
        "node-quarantined": _rule(
            "weft_node_quarantined == 1",
            0.0,
            "warning",
            "starts keep failing on node {{ $labels.node }}, so it gets no workloads: see weft node describe {{ $labels.node }}",
        ),
        "node-unreachable": _rule(
            f'min by (node) (label_replace({_LOSS}, "node", "$1", "peer", "(.*)")) > 0.9',
            0.0,
            "critical",
            "node {{ $labels.node }} answers none of its peers: its agent hangs, or its network is cut",
        ),
        "link-lossy": _rule(
            f"{_LOSS} > 0.05 and {_LOSS} <= 0.9",
            0.0,
            "warning",
            "of the packets from node {{ $labels.node }} to {{ $labels.peer }} and back a share of {{ $value }} gets lost",
        ),
        "link-cut": _rule(
            f"{_LOSS} > 0.9 unless on (peer) (min by (peer) ({_LOSS}) > 0.9)",
            _MINUTE / 2,
            "warning",
            "nothing from node {{ $labels.node }} reaches {{ $labels.peer }}, which answers others",
        ),
        "cluster-unlinked": _rule(
            "weft_cluster_link_up == 0",
            _MINUTE,
            "warning",
            "the link with cluster {{ $labels.cluster }} doesn't work: see weft cluster describe {{ $labels.cluster }}",
        ),
        "replica-behind": _rule(
            "weft_replication_lag_seconds > 0.8 * weft_replication_rpo_seconds",
            0.0,
            "warning",
            "the newest point of replication {{ $labels.project }}/{{ $labels.name }} is {{ $value }} s old",
        ),
        "node-memory-full": _rule(
            "weft_node_memory_available_bytes / on (node) weft_node_memory_bytes < 0.05",
            5 * _MINUTE,
            "warning",
            "node {{ $labels.node }} has less than 5 % of its memory left",
        ),
        "node-disk-full": _rule(
            "weft_node_pool_free_bytes / weft_node_pool_bytes < 0.05",
            0.0,
            "critical",
            "pool {{ $labels.pool }} of node {{ $labels.node }} has less than 5 % free",
        ),
        "pool-nearly-full": _rule(
            "weft_pool_used_bytes / weft_pool_capacity_bytes > 0.85",
            5 * _MINUTE,
            "warning",
            "pool {{ $labels.pool }} is more than 85 % full",
        ),
        "guest-killed-for-memory": _rule(
            "increase(weft_guest_memory_kills_total[10m]) > 0",
            0.0,
            "warning",
            "{{ $labels.kind }} {{ $labels.project }}/{{ $labels.name }} exceeded its memory on node {{ $labels.node }}",
        ),
        "guest-disk-failed": _rule(
            "weft_guest_disk_failed == 1",
            0.0,
            "critical",
            "{{ $labels.kind }} {{ $labels.project }}/{{ $labels.name }} stands still: a disk of it can't be written",
        ),
        "certificate-expiring": _rule(
            f"weft_certificate_expiry_timestamp_seconds - time() < {7 * _DAY:.0f}",
            0.0,
            "critical",
            "certificate {{ $labels.certificate }} {{ $labels.node }} ends in {{ $value }} s; it should have been renewed",
        ),
        "migration-stuck": _rule(
            f"weft_migration_running_seconds > {_HOUR:.0f}",
            0.0,
            "warning",
            "migration {{ $labels.migration }} of {{ $labels.kind }} {{ $labels.name }} takes {{ $value }} s",
        ),
        "clock-off": _rule(
            "abs(weft_node_clock_offset_seconds) > 2",
            5 * _MINUTE,
            "warning",
            "the clock of node {{ $labels.node }} is {{ $value }} s off",
        ),
        "lease-at-risk": _rule(
            "weft_lease_at_risk == 1",
            _MINUTE,
            "warning",
            "the lease of {{ $labels.kind }} {{ $labels.project }}/{{ $labels.name }} can't be kept as promised",
        ),
        "backup-failed": _rule(
            "weft_backup_failed == 1",
            0.0,
            "warning",
            "the newest backup of {{ $labels.kind }} {{ $labels.project }}/{{ $labels.name }} failed",
        ),
    }


def _rule(expr: str, seconds: float, severity: str, summary: str) -> dict[str, Any]:
    return {"expr": expr, "for": seconds, "severity": severity, "summary": summary, "fabric": True}
