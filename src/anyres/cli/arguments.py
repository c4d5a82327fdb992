"""Arguments and options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="e.g. optim.lr=3e-4")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A folder made by `anyres train`.")]
Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL|RUN",
        help="A folder made by `anyres train`, weights of the index such as deit3_small.384, or a model.",
    ),
]
Weights = Annotated[
    str | None,
    typer.Option("--weights", help="A model's weights: a file, URL, hub id, or name of `anyres models NAME`; or none."),
]
Classes = Annotated[
    Path | None,
    typer.Option(
        "--classes",
        help="CSV or JSON with the names of the weights' classes, one a line in their order; or imagenet.",
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="A folder (root/class/*.jpg or root/train|val/...), a manifest (.csv, .jsonl), parquet files or tar "
        "shards (part-{00..09}.tar), hf:OWNER/NAME, torchvision:NAME@FOLDER, a built-in set: `anyres data` says more.",
    ),
]
Split = Annotated[str | None, typer.Option(help="train, val, trainval or test; the recipe's own if not given.")]
Sizes = Annotated[
    list[str] | None,
    typer.Option("--sizes", help="Sizes such as 224, 320x192 (height x width) or 64:320:32; may be repeated."),
]
AsJson = Annotated[
    Path | None, typer.Option("--json", help="A file for all numbers as JSON; - prints them instead of the table.")
]
BACKEND = (
    "auto (measures once and remembers), eager, inductor, onnxruntime or openvino; with :bf16 for bf16; the last two "
    "also with :int8, whose ranges are read from a run's training images at every start."
)
RayAddress = Annotated[
    str | None, typer.Option("--address", help="The Ray cluster's; without it one is started on this machine.")
]
HugePages = Annotated[
    bool,
    typer.Option("--huge-pages", help="Move the process's memory into huge pages (Linux): faster, more memory."),
]
