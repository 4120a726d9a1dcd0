"""Who may do what: the fabric's own CA, tokens, and tickets for streams."""
