"""The nodes that fit a request, best first: kept so that the next decision need not score all of them."""
