"""The doors: every request goes authenticate → authorise → admit → commit → stream. Routes derive from the kinds."""
