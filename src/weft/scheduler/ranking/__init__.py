"""The nodes that fit a request, best first: what is kept so that the next decision needs not look at all of them."""
