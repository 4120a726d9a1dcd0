"""Who may speak: the fabric's own CA, tokens, and tickets for streams. Each stands alone; tickets are stdlib only."""
