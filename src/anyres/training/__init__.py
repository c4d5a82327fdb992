"""The one training loop and its parts. It gets a module, an iterator of Batch, and callbacks; it knows no family."""
