"""The command line: one file per verb. Heavy imports happen inside the verbs, so that ``--help`` answers at once."""

from anyres.cli import (  # noqa: F401  # in the order in which `anyres --help` lists them
    bench,
    cascade,
    curve,
    data,
    demo,
    eval,
    models,
    pick,
    predict,
    probe,
    recipes,
    show,
    train,
)
from anyres.cli.app import app, main

__all__ = ["app", "main"]
