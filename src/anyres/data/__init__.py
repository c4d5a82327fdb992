"""Data: sources -> decode -> cache -> augment -> views -> loader, then normalise and mix on the device.

Read in that order. Each stage is a function of (seed, epoch, index), so a run starts again from a step number alone.
Nothing is imported here: ``from anyres.data.sources import open_source`` and so on.
"""
