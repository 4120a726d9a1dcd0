"""HTTP for untrusted clients: one small server, with a bound on all that a client can make it hold or wait for."""
