"""The command line: one file per verb. Heavy imports happen inside the verbs, so that ``--help`` answers at once."""

# isort: off
from anyres.cli import train, eval, curve, compare, pick, predict, cascade, export, push, serve  # noqa: F401  # as `anyres --help` lists them
from anyres.cli import probe, look, fourier, models, recipes, show, data, check, demo, bench, doctor  # noqa: F401
from anyres.cli.app import app, command, main

__all__ = ["app", "command", "main"]
