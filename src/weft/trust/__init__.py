"""Identities and rights: the fabric's own CA, tokens, and tickets for streams."""
