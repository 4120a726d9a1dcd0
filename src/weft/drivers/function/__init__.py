"""Ways to isolate instances of functions that need no runtime of their own, and what several ways share."""
