"""``anyres bench data`` and ``anyres bench model``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anyres.cli.app import app
from anyres.cli.arguments import AsJson, Overrides, Sizes, Weights
from anyres.config import UserError

bench = typer.Typer(help="Measure speed on this machine. Example: `anyres bench data photos`", no_args_is_help=True)
app.add_typer(bench, name="bench")


@bench.command("data")
def bench_data(
    data: Annotated[str, typer.Argument(metavar="PATH", help="Images in any form that `anyres data` lists.")],
    overrides: Overrides = None,
    recipe: Annotated[str, typer.Option("--recipe", help="Whose views and augmentation; see `anyres recipes`.")] = (
        "folder"
    ),
    seconds: Annotated[float, typer.Option(min=0.1, help="For the stages, and again for the whole loader.")] = 5.0,
    into: AsJson = None,
) -> None:
    """Images/s of loading: of each stage on one core, of the whole loader, which stage binds, and what to raise.

    Example: `anyres bench data groceries --recipe demo/any_size data.workers=2`
    """
    from anyres.cli.bench_results import loading_sentences, loading_table
    from anyres.cli.console import is_stdout, print_json, report_, stdout
    from anyres.recipe import load_recipe
    from anyres.runs.bench_data import bench_data
    from anyres.storage import write_json

    report = bench_data(data, load_recipe(recipe, overrides or []), seconds)
    if is_stdout(into):
        print_json(report.facts())
        return
    stdout().print(loading_table(report))
    report_(*loading_sentences(report))
    if into is not None:
        write_json(into, report.facts())
        report_(f"written: {into}")


@bench.command("model")
def bench_model(
    models: Annotated[list[str], typer.Argument(metavar="MODEL|RUN...", help="Models, weights of the index, or runs.")],
    weights: Weights = None,
    sizes: Sizes = None,
    batches: Annotated[str, typer.Option("--batches", help="Images at a time.")] = "1,8",
    backends: Annotated[
        list[str] | None, typer.Option("--backend", help="As openvino:bf16; may be repeated; all if not given.")
    ] = None,
    against: Annotated[
        list[str] | None, typer.Option("--against", help="plain, timm, onnxruntime or openvino; may be repeated.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Of every configuration, in turn.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.05, help="For each round of each configuration.")] = 1.0,
    processes: Annotated[
        int, typer.Option(min=1, help="Of each configuration, one after another: two alike differ by some percent.")
    ] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="Of the processor; its cores if not given.")] = None,
    into: Annotated[Path | None, typer.Option("--json", help="A file for all numbers as JSON.")] = None,
    picture: Annotated[Path | None, typer.Option("--plot", help="A PNG file for the bars.")] = None,
) -> None:
    """Images/s, latency, memory and the share of this machine's own matrix rate, of ours and of peers in one run.

    Example: `anyres bench model restv2_tiny --sizes 224 --batches 8 --against openvino --plot speed.png`
    """
    from anyres.cli.bench_results import show_comparison
    from anyres.flow import parse_sizes
    from anyres.runs.bench import BenchmarkConfig, bench_models

    if not all(part.strip().isdecimal() and int(part) for part in batches.split(",")):
        raise UserError(f"--batches {batches!r}: give numbers of images, as 1,8")
    config = BenchmarkConfig(
        models=models,
        weights=weights,
        sizes=parse_sizes(sizes or ["224"]),
        batches=[int(part) for part in batches.split(",")],
        backends=backends or [],
        against=against or [],
        rounds=rounds,
        seconds=seconds,
        threads=threads,
        processes=processes,
    )
    bench_models(config, into, picture, show_comparison)
