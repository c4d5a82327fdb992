"""anyres: one vision backbone that holds its accuracy at every input size."""
