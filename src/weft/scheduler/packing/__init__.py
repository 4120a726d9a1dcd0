"""Everything on as few nodes as it takes: a search, and a solver behind it."""
