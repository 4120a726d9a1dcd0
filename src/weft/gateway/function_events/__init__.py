"""Asynchronous invocations: kept until they were run, run again when they failed, and kept apart when that was all in vain."""
