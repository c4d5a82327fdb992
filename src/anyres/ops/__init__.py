"""Maths that two families share. A leaf of the tree but for the users' error it raises."""
