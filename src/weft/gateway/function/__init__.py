"""Functions at the gateway: which node runs an invocation, and what is known of them."""
