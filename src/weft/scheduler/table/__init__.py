"""The cluster as placement sees it: nodes as columns, kept up to date by increments, and the nodes that filters accept."""
