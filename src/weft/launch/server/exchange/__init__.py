"""A running server takes its objects to another store."""
