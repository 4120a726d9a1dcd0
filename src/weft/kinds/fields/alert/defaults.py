"""The rules that a new fabric begins with: ordinary objects, which people may change or delete. They see the whole fabric, so they
are in a project of their own, whose alerts only those see who have a role in all projects."""

from __future__ import annotations

from typing import Any

PROJECT = "fabric"
DESCRIPTION = "alert rules of the whole fabric"
_MINUTE, _HOUR, _DAY = 60.0, 3600.0, 86_400.0


def list_default_rules() -> dict[str, dict[str, Any]]:
    """The specs by name."""
    return {
        "node-silent": _rule(
            "weft_node_up == 0", _MINUTE, "critical", "node {{ $labels.node }} doesn't report: see weft describe node"
        ),
        "node-memory-full": _rule(
            "weft_node_memory_available_bytes / on (node) weft_node_memory_bytes < 0.05",
            5 * _MINUTE,
            "warning",
            "node {{ $labels.node }} has less than 5 % of its memory left",
        ),
        "node-disk-full": _rule(
            "weft_node_pool_free_bytes / weft_node_pool_bytes < 0.05",
            _MINUTE,
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
