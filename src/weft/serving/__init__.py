"""HTTP for strangers: one small server, bounded in whatever one of them may make it hold or wait for."""
