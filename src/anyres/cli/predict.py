"""``anyres predict``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anyres.cli.app import app
from anyres.cli.arguments import BACKEND, Classes, HugePages, Model, RayAddress, Weights
from anyres.config import UserError

if TYPE_CHECKING:
    from anyres.flow import Size
    from anyres.runs.answers import FileAnswer
    from anyres.runs.opened import ModelSpec, TrainedModel
    from anyres.runs.predict import PredictOptions
    from anyres.tasks import AnswerOptions

NAMED = 3  # unreadable files that the last line names


@app.command()
def predict(
    model: Model,
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE...", help="Files, folders (all images below), patterns such as 'a/**/*.png'."),
    ],
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
    as_json: Annotated[
        Path | None,
        typer.Option(
            "--json", help="Write the answers as JSON, boxes as COCO has them too; - prints them instead of the table."
        ),
    ] = None,
    as_csv: Annotated[Path | None, typer.Option("--csv", help="Write the answers as CSV, one row an image.")] = None,
    draw: Annotated[
        Path | None,
        typer.Option("--draw", help="Folder for what is drawn of each answer: of class maps, overlay and index PNG."),
    ] = None,
    tile: Annotated[
        int | None,
        typer.Option(min=16, help="Cut images into overlapping tiles of so many pixels; boxes or maps are joined."),
    ] = None,
    huge_pages: HugePages = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="For many images: .csv, .jsonl or .parquet; the same command continues after a kill."
        ),
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="With --out: images of one size at a time.")] = 32,
    engine: Annotated[
        str, typer.Option("--engine", help="With --out: local, or ray for a Ray cluster (pip install 'anyres[ray]').")
    ] = "local",
    address: RayAddress = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Of the Ray cluster, at most; as many as fit if not given.")
    ] = None,
) -> None:
    """Print the likeliest classes of images; every likely label where the model gives several; the share of each class
    where it gives maps.

    An image that cannot be read is a row with the reason; the exit code is then 2, and all others are answered.

    With `--out` images may also be lists of paths (.txt, .csv, .jsonl, .parquet), tar shards, and `-`, a list on stdin;
    the work continues where it was stopped, an image that cannot be read is a row, and the exit code is 0. `--size` may
    then name several sizes: each image is seen at the largest that it fills.

    Example: `anyres predict runs/first photos --size 96 --csv answers.csv`
    """
    if out is not None:
        if as_csv or as_json or draw:
            raise UserError("--out stands alone: leave out --csv, --json and --draw")
        from anyres.cli.console import report_
        from anyres.flow import parse_sizes
        from anyres.runs.bulk.options import BulkOptions, Engine
        from anyres.runs.bulk.run import predict_into
        from anyres.runs.opened import ModelSpec

        sizes = parse_sizes([size]) if size else ()
        how = BulkOptions(sizes, backend, cascade, tile, top, threshold, batch, huge_pages)
        done = predict_into(out, ModelSpec(model, weights, classes), images, how, Engine(engine, address, workers))
        report_(done.line)
        return
    if engine != "local" or address or workers:
        raise UserError("--engine, --address and --workers go with --out: name a file for the answers")
    from anyres.cli.console import is_stdout
    from anyres.flow import Size
    from anyres.runs.opened import ModelSpec
    from anyres.runs.predict import PredictOptions
    from anyres.tasks import AnswerOptions

    if as_csv and is_stdout(as_csv):
        raise UserError("--csv writes a file: name one, or print the answers with --json -")
    options = PredictOptions(Size.parse(size) if size else None, backend, cascade, huge_pages, draw, tile)
    _answer_now(ModelSpec(model, weights, classes), images, options, AnswerOptions(top, threshold), as_json, as_csv)


def _answer_now(
    spec: ModelSpec,
    images: Sequence[str],
    options: PredictOptions,
    how: AnswerOptions,
    as_json: Path | None,
    as_csv: Path | None,
) -> None:
    """Answer some images, and print or write all answers at the end. Raises UserError, also for unreadable ones."""
    from rich import get_console
    from rich.progress import track

    from anyres.cli.console import is_stdout, print_json, report_, suggest
    from anyres.data.wanted_files import wanted_files
    from anyres.runs.answers import FileAnswer, write_answers_csv
    from anyres.runs.opened import open_model
    from anyres.runs.predict import predict_files
    from anyres.runs.stderr import log_sentences
    from anyres.storage import write_json

    paths, notes = wanted_files(images)
    trained = open_model(spec)
    log_sentences(notes)
    found = predict_files(trained, paths, options, how)
    shown = track(found, "images", len(paths), transient=True, disable=not get_console().is_terminal)
    answers = [FileAnswer(path, said) for path, said in shown]
    facts = {"model": trained.name, **trained.task.document([answer.values for answer in answers])}
    if is_stdout(as_json):
        print_json(facts)
    elif as_json:
        write_json(as_json, facts)
    if as_csv:
        write_answers_csv(as_csv, answers)
    written = [path for path in (as_json, as_csv, options.draw) if path and not is_stdout(path)]
    if written and not is_stdout(as_json):  # whose JSON stands alone
        report_(f"{len(answers)} images: written to {' and '.join(map(str, written))}")
    elif not as_json:
        _print(answers)
    if not options.cascade:
        _tell_drift(trained, options.size or trained.recipe.views.parsed[0], answers)
    _check_readable(answers)
    if not written and not as_json and len(answers) > 1:
        suggest(f"anyres predict {spec.what} {images[0]} --csv answers.csv")


def _print(answers: Sequence[FileAnswer]) -> None:
    """A table with a row for each image; for one that cannot be read, the reason."""
    from rich.table import Table

    from anyres.cli.console import stdout
    from anyres.tasks import Answer

    said = [(answer, answer.said.cells if isinstance(answer.said, Answer) else {}) for answer in answers]
    columns = dict.fromkeys(column for _, cells in said for column in cells)
    table = Table(box=None, header_style="bold", pad_edge=False)
    broken = ["error"] if any(answer.error for answer in answers) else []
    for column in ("image", *columns, *broken):
        table.add_column(column, overflow="fold")
    for answer, cells in said:
        every = {"image": str(answer.path), **cells, "error": answer.error}
        table.add_row(*(every.get(column, "") for column in ("image", *columns, *broken)))
    stdout().print(table)


def _tell_drift(trained: TrainedModel, size: Size, answers: Sequence[FileAnswer]) -> None:
    """How far the confidence of many answers is from that on held-out images, where that is known."""
    from anyres.evaluation.drift import FEWEST

    if len(answers) < FEWEST:  # what follows imports what few answers do not need
        return
    from anyres.runs.drift import DriftCounter

    drift = DriftCounter(trained)
    for answer in answers:
        drift.add(size, answer.values)
    drift.tell()


def _check_readable(answers: Sequence[FileAnswer]) -> None:
    """Raises UserError that names what cannot be read."""
    broken = [answer for answer in answers if answer.error]
    if broken:
        named = "; ".join(f"{answer.path} is unreadable: {answer.error}" for answer in broken[:NAMED])
        more = f"; {len(broken)} of {len(answers)} images in all" if len(broken) > NAMED else ""
        raise UserError(f"{named}{more}")
