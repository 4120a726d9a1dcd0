"""The cluster as placement sees it: nodes as columns, kept up to date by increments, and where filters let a request go."""
