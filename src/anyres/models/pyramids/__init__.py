"""Pyramids: an image becomes maps of strides 4, 8, 16 and 32, as detection and segmentation want them."""
