"""The command line: one verb per task. Heavy imports happen inside the verbs, so that ``--help`` answers at once."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

from anyres.config import Stopped, UserError

app = typer.Typer(
    help="Train one vision backbone that holds its accuracy at every input size, and run it at the cheapest size "
    "that does the job.",
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

bench = typer.Typer(help="Measure speed on this machine. Example: `anyres bench data photos`", no_args_is_help=True)
app.add_typer(bench, name="bench")

Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="e.g. optim.lr=3e-4")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A folder made by `anyres train`.")]
Subject = Annotated[
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
    typer.Option("--classes", help="CSV or JSON with the names of the weights' classes, one a line in their order."),
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
BACKEND = (
    "auto (measures once and remembers), eager, inductor, onnxruntime or openvino; with :bf16 for bf16; the last two "
    "also with :int8, whose ranges are read from a run's training images at every start."
)
HugePages = Annotated[
    bool,
    typer.Option("--huge-pages", help="Move the process's memory into huge pages (Linux): faster, more memory."),
]
Sizes = Annotated[
    list[str] | None,
    typer.Option("--sizes", help="Sizes such as 224, 320x192 (height x width) or 64:320:32; may be repeated."),
]


def _version(asked: bool) -> bool:
    from importlib.metadata import version

    if asked:
        print(f"anyres {version('anyres')}")
        raise typer.Exit
    return asked


@app.callback()
def options(
    offline: Annotated[
        bool, typer.Option("--offline", help="Fetch nothing: only weights and images already in the cache.")
    ] = False,
    version: Annotated[  # noqa: ARG001
        bool, typer.Option("--version", help="Print the version and stop.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Options before the verb hold for every verb."""
    if offline:
        os.environ["ANYRES_OFFLINE"] = "1"


def main() -> None:
    """The ``anyres`` command. A user's mistake is one line on stderr and exit code 2."""
    words = sys.argv[1:] or ["--help"]
    warnings.formatwarning = lambda message, *_, **__: f"note: {message}\n"  # for people: without file and line
    try:
        code = app(words, prog_name="anyres", standalone_mode=False)
    except typer.TyperException as error:  # of the command line itself
        code = fail(f"{error.format_message().rstrip('.')}{_hint(words)}")
    except UserError as error:
        code = fail(str(error))
    except OSError as error:  # a full disk, a folder that may not be written
        if error.filename is None:
            raise
        code = fail(f"{error.filename}: {error.strerror}")
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(130)
    except typer.Abort:
        code = 130
    if code == 130:
        print("stopped", file=sys.stderr)
    sys.exit(code if isinstance(code, int) else 0)


def fail(text: str) -> int:
    """Print ``text`` as the one line a mistake is worth; returns the exit code."""
    print(f"error: {' '.join(text.splitlines())}", file=sys.stderr)
    return 2


def _hint(words: list[str]) -> str:
    """Where to read on after a mistake in the command line itself."""
    verbs = [str(command.name or command.callback.__name__) for command in app.registered_commands if command.callback]
    if words[0] in verbs:
        return f" (`anyres {words[0]} --help` shows an example)"
    return " (`anyres --help` lists the verbs)"


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE|MODEL", help="See `anyres recipes` and `anyres models`.")],
    overrides: Overrides = None,
    data: Data = None,
    out: Annotated[Path | None, typer.Option("--out", help="The run folder; runs/NAME if not given.")] = None,
    weights: Annotated[
        str | None,
        typer.Option("--weights", help="Start from known weights (deit_base.224), a file, a URL, a hub id or a run."),
    ] = None,
) -> None:
    """Train a model; the same command again resumes an interrupted run, or says that it is done.

    Example: `anyres train restv2_nano --data groceries --out runs/first train.epochs=2`
    """
    from anyres.recipe import load_recipe
    from anyres.runs.train import train_run

    given = [*(overrides or []), *([f"data.source={data}"] if data else [])]
    given += [f"weights={weights}"] if weights else []
    name = Path(recipe).stem if recipe.endswith((".yaml", ".yml")) else recipe.replace("/", "-")
    train_run(load_recipe(recipe, given), out or Path("runs") / name)


@app.command("eval")
def evaluate(
    model: Subject,
    weights: Weights = None,
    data: Data = None,
    split: Split = None,
    sizes: Sizes = None,
    classes: Classes = None,
    into: Annotated[
        Path | None, typer.Option("--json", help="A file for all numbers as JSON; - prints them instead of the table.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="A folder for per_class.csv, confusion.csv and its pictures.")
    ] = None,
) -> None:
    """Score a trained run, or any model with weights, at its own sizes or at the sizes given, against its claim.

    Example: `anyres eval runs/first --sizes 64,128 --split test`

    Published weights: `anyres eval deit3_small.384 --data imagenet --sizes 224,384`
    """
    from anyres.runs.verbs import Subject, Where, evaluate_run

    evaluate_run(Subject(model, weights, classes), Where(data, split), sizes, into, out)


@app.command()
def curve(
    model: Subject,
    more: Annotated[list[str] | None, typer.Argument(metavar="[SIZE]...", help="More sizes.")] = None,
    weights: Weights = None,
    data: Data = None,
    split: Split = None,
    sizes: Sizes = None,
    classes: Classes = None,
    out: Annotated[Path | None, typer.Option("--out", help="Where they go; the run folder if not given.")] = None,
) -> None:
    """Accuracy, cost and speed at every size: a table, `curve.csv`, `curve.png` and `report.html` in the run folder.

    Example: `anyres curve runs/first --sizes 64:320:32 320x192`
    """
    from anyres.runs.verbs import Subject, Where, curve_run

    wanted = [*(sizes or []), *(more or [])] or ["64:320:32"]
    curve_run(Subject(model, weights, classes), Where(data, split), wanted, out)


@app.command()
def probe(
    model: Subject,
    weights: Weights = None,
    data: Data = None,
    split: Split = None,
    size: Annotated[
        str | None, typer.Option(help="224 or 320x192; the largest it was trained at if not given.")
    ] = None,
    knn: Annotated[bool, typer.Option("--knn", help="Only nearest neighbours.")] = False,
    linear: Annotated[bool, typer.Option("--linear", help="Only a linear classifier.")] = False,
    k: Annotated[str, typer.Option(help="Numbers of neighbours.")] = "10,20,100,200",
    epochs: Annotated[int, typer.Option(help="Of the linear classifier.")] = 100,
    lr: Annotated[float, typer.Option(help="Its learning rate, for a batch of 256 images.")] = 0.001,
    batch_size: Annotated[int, typer.Option(help="Its batch.")] = 256,
    seed: Annotated[int, typer.Option(min=0, help="Its seed.")] = 0,
    keep: Annotated[
        Path | None, typer.Option("--keep", help="A folder to keep the features in, and to take them from again.")
    ] = None,
    into: Annotated[
        Path | None, typer.Option("--json", help="A file for all numbers as JSON; - prints them instead of the table.")
    ] = None,
) -> None:
    """Say what a model's frozen features are worth: nearest neighbours and a linear classifier on any labelled images.

    Example: `anyres probe dino_vits16.224 --data imagenet --knn`
    """
    from anyres.evaluation.probe import ProbeConfig
    from anyres.runs.verbs import Probes, Subject, Where, probe_run

    if not all(part.strip().isdecimal() for part in k.split(",")):
        raise UserError(f"--k {k!r}: give numbers of neighbours, as 10,20")
    neighbours = tuple(int(part) for part in k.split(","))
    how = ProbeConfig(k=neighbours, epochs=epochs, lr=lr, batch_size=batch_size, seed=seed)
    probe_run(Subject(model, weights), Where(data, split), size, Probes(knn, linear, how, keep), into)


@app.command()
def pick(
    run: RunFolder,
    min_top1: Annotated[
        float | None,
        typer.Option("--min-top1", "--min-map", help="Least top-1 accuracy (of several labels: mAP), such as 0.9."),
    ] = None,
    max_ms: Annotated[float | None, typer.Option(help="Longest time for one image, in milliseconds.")] = None,
) -> None:
    """Name the cheapest size that is accurate enough, or the most accurate that is fast enough (after `curve`).

    Example: `anyres pick runs/first --min-top1 0.9`
    """
    from anyres.runs.verbs import pick_size

    pick_size(run, min_top1, max_ms)


@app.command()
def predict(
    model: Subject,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.")],
    weights: Weights = None,
    classes: Classes = None,
    size: Annotated[str | None, typer.Option(help="224 or 320x192; the recipe's largest if not given.")] = None,
    top: Annotated[int, typer.Option(min=1, help="How many classes to print.")] = 3,
    backend: Annotated[str | None, typer.Option("--backend", help=BACKEND)] = None,
    cascade: Annotated[
        bool, typer.Option("--cascade", help="Small first, larger where unsure, as `anyres cascade` chose.")
    ] = False,
    threshold: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Of several labels: every one above this probability; 0.5 if not given."),
    ] = None,
    huge_pages: HugePages = False,
) -> None:
    """Print the likeliest classes of images; every likely label where the model gives several.

    Example: `anyres predict runs/first photo.jpg --size 96`
    """
    from anyres.flow import Size
    from anyres.runs.verbs import Answering, Subject, predict_images

    if cascade and size:
        raise UserError("--cascade chooses the size for every image: leave out --size")
    how = Answering(Size.parse(size) if size else None, backend, cascade, threshold, huge_pages)
    predict_images(Subject(model, weights, classes), images, how, top)


@app.command()
def cascade(
    run: RunFolder,
    sizes: Sizes = None,
    max_loss: Annotated[float, typer.Option(help="Points of top-1 that it may lose against the largest size.")] = 0.3,
    data: Data = None,
    backend: Annotated[str, typer.Option("--backend", help=BACKEND)] = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 8,
    huge_pages: HugePages = False,
) -> None:
    """Choose a cascade: every image runs at a small size first, and at a larger one only where confidence is low.

    One half of the held-out images chooses, the other half measures; `anyres predict --cascade` then uses it.

    Example: `anyres cascade runs/first --sizes 64,96,128 --max-loss 0.3`
    """
    from anyres.cli.cascade import result_sentence, stages_table
    from anyres.deploy.predictor import EngineOptions
    from anyres.flow import parse_sizes
    from anyres.runs.cascade import choose_cascade
    from anyres.runs.opened import evaluated_sizes, open_run
    from anyres.runs.report import screen

    wanted = parse_sizes(sizes) if sizes else evaluated_sizes(open_run(run).recipe)
    chosen = choose_cascade(run, wanted, max_loss, EngineOptions(backend, batch_size, huge_pages), data)
    screen().print(stages_table(chosen))
    screen().print(result_sentence(chosen))


@app.command()
def models(pattern: Annotated[str, typer.Argument(help="Names to list, with * and ?.")] = "*") -> None:
    """List the models, their sizes and published accuracies.

    Example: `anyres models "rest*"`
    """
    from anyres.cli.show import show_models

    show_models(pattern)


@app.command()
def recipes() -> None:
    """List the recipes that come with the package.

    Example: `anyres recipes`
    """
    from anyres.cli.show import show_recipes

    show_recipes()


@app.command()
def show(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE|MODEL")],
    overrides: Overrides = None,
) -> None:
    """Print a recipe with every value written out, as a run would use it.

    Example: `anyres show demo/any_size train.epochs=5`
    """
    from anyres.recipe import dump_recipe, load_recipe

    print(dump_recipe(load_recipe(recipe, overrides or [])), end="")


@app.command("data")
def data_sets() -> None:
    """Describe where images may come from, and the built-in sets: contents, licence, citation.

    Example: `anyres data`
    """
    from anyres.cli.show import show_data

    show_data()


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Where curve.csv, curve.png and report.html go.")] = Path(
        "runs/demo"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Seed of both trainings.")] = 0,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Fewer for a quick look; the recipe's if not given.")
    ] = None,
) -> None:
    """Train an any-size model and its single-size twin on real photographs and compare them at many sizes.

    Example: `anyres demo --epochs 2 --out runs/quick`
    """
    from anyres.runs.demo import run_demo

    run_demo(out, seed, epochs)


@bench.command("data")
def bench_data(
    data: Annotated[str, typer.Argument(metavar="PATH", help="Images in any form that `anyres data` lists.")],
    overrides: Overrides = None,
    recipe: Annotated[str, typer.Option("--recipe", help="Whose views and augmentation; see `anyres recipes`.")] = (
        "folder"
    ),
    seconds: Annotated[float, typer.Option(min=0.1, help="For the stages, and again for the whole loader.")] = 5.0,
    into: Annotated[
        Path | None, typer.Option("--json", help="A file for all numbers as JSON; - prints them instead of the table.")
    ] = None,
) -> None:
    """Images/s of loading: of each stage on one core, of the whole loader, which stage binds, and what to raise.

    Example: `anyres bench data groceries --recipe demo/any_size data.workers=2`
    """
    import json

    from anyres.cli.bench import loading_sentences, loading_table
    from anyres.recipe import load_recipe
    from anyres.runs.bench_data import bench_data
    from anyres.runs.report import messages, screen
    from anyres.storage import write_text

    report = bench_data(data, load_recipe(recipe, overrides or []), seconds)
    if str(into) == "-":
        print(json.dumps(report.facts(), indent=1))
        return
    screen().print(loading_table(report))
    for sentence in loading_sentences(report):
        screen().print(sentence)
    if into is not None:
        write_text(into, json.dumps(report.facts(), indent=1) + "\n")
        messages().print(f"written: {into}")


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
    from anyres.cli.bench import show_comparison
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
