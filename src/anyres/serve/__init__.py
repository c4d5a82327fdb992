"""The HTTP server and its page: one model, a size for each request, batches of one size."""
