"""``anyres export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anyres.cli.app import app
from anyres.cli.arguments import Classes, Data, Model, Weights


@app.command()
def export(
    model: Model,
    out: Annotated[
        Path,
        typer.Option("--out", help="The file: .onnx, .xml, .pte, .pt2, .safetensors; of triton and web a folder."),
    ],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            help="onnx (one file for onnxruntime and OpenVINO), openvino (.xml and .bin), executorch (.pte), "
            "torch (.pt2), safetensors (weights and JSON), triton (a model repository), web (a page that runs the "
            "model in a browser).",
        ),
    ] = "onnx",
    sizes: Annotated[
        list[str] | None,
        typer.Option(
            "--sizes",
            help="Beside the file for every size one for each of these, faster there. Of executorch these alone.",
        ),
    ] = None,
    int8: Annotated[
        bool,
        typer.Option("--int8", help="Of onnx and triton: in int8; the certificate says what it costs at each size."),
    ] = False,
    data: Data = None,
    weights: Weights = None,
    classes: Classes = None,
) -> None:
    """Write a model as one file that takes any image and any size, and check it against the model.

    The file decides nothing: give it the bytes of an image, `image` uint8 (batch, height, width, channels), and the
    size the model shall see, `size` int64 (height, width). It resizes, crops, normalizes, and answers `probabilities`.
    Class names, preprocessing, the measured curve and the certificate of the check stand inside.

    Example: `anyres export runs/first --to onnx --out first.onnx --sizes 96,160`
    """
    from anyres.cli.console import report_
    from anyres.runs.export import export as write
    from anyres.runs.opened import ModelSpec

    made = write(ModelSpec(model, weights, classes), out, to, sizes=sizes or (), data=data, int8=int8)
    for name, certificate in made.certificates.items():
        report_(f"{name}: {certificate.line}")
    report_(f"written: {', '.join(map(str, made.files))}")
    if to == "web":
        report_(f"open it: python -m http.server -d {out}, then http://127.0.0.1:8000 in a browser")
