"""Ways to isolate instances of functions that need no runtime of their own; what several ways share lies beside them."""
