"""Messages between two sites and their witness."""
