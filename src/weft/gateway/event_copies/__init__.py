"""Copies of asynchronous invocations at another server's gateway, which runs them when theirs is gone."""
