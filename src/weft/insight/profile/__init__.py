"""All that is said of a workload, from its series: what a WorkloadProfile holds."""
