"""A runtime without machines: it keeps the whole contract, and fails and waits when told to."""
