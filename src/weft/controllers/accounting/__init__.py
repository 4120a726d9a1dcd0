"""Accounting: what each project's workloads requested and used, over time."""
