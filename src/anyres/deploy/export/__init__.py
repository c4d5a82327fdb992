"""Trained models as files that other programs run: any image in, probabilities out, the size a dial of the file."""
