"""Functions at the gateway: which node runs an invocation, and the records of invocations."""
