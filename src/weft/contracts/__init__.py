"""Every place to plug in, on one screen: store, clock, host, runtime, network, volume, policy. Types only."""
