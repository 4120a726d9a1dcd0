"""Every place to plug in, types only: store, clock, policy, and in ``driver`` what an agent's drivers promise."""
