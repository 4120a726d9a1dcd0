"""The third place that two sites ask who is primary. It knows sites, groups and generations, and no guest."""
