"""Custom policies: each runs in a worker process that can only answer, within a time limit."""
