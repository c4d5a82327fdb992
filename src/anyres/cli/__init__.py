"""The command line: one file per verb. Heavy imports happen inside the verbs, so that ``--help`` answers at once."""

from anyres.cli import (  # noqa: F401  # in the order in which `anyres --help` lists them
    train,
    eval,  # noqa: A004
    curve,
    probe,
    pick,
    predict,
    cascade,
    models,
    recipes,
    show,
    data,
    demo,
    bench,
)
from anyres.cli.app import app, main

__all__ = ["app", "main"]
