"""A process's copy of the store, kept up by a watch: cache, views over it, indexes, the leader lease, commits."""
