"""A network driver without a network: the same promises kept in memory, with delays and failures on demand."""
