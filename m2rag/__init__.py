"""One vector for a whole long document. See README.md for the first example."""
