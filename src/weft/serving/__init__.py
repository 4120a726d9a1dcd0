"""HTTP for strangers: uvicorn's protocol, bounded in whatever one of them may make it hold or wait for."""
