"""A runtime without machines: it keeps the whole contract, and fails and waits as its orders say."""
