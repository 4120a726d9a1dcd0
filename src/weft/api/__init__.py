"""The API server: every request goes authenticate → authorise → admit → commit → stream. Routes derive from the kinds."""
