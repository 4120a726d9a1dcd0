"""Users' own policies: each runs in a worker process that can do nothing but answer, and not for long."""
