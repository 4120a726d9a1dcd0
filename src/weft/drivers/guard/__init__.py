"""A process of its own that ends guests whose time is over, whatever has become of the agent."""
