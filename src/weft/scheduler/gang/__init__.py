"""Several workloads that are placed together, in one commit, or not at all."""
