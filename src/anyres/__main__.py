"""``python -m anyres`` is the ``anyres`` command; torchrun starts it so."""

from anyres.cli import command

command()
