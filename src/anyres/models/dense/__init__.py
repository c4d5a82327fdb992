"""Detectors and segmenters: a pyramid of any backbone, and what reads boxes, masks or a class per pixel off it."""
