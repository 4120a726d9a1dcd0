"""Asynchronous invocations: kept until they have run, retried after a failure, and dead letters after the last one."""
