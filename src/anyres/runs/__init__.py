"""A run and what is made of it: train, open, report, predict."""
