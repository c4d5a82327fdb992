"""``anyres predict ... --out FILE``: list the images, answer what is missing part by part, join the parts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from rich import get_console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from anyres.config import UserError
from anyres.data.image_list import read_words, wanted_images
from anyres.data.loader import Rank
from anyres.flow import Size
from anyres.models.state_files import digest_of
from anyres.runs.bulk.identity import asked_of
from anyres.runs.bulk.job import Job, alone, begin_job, continue_job, is_begun
from anyres.runs.bulk.joined import check_out, join, kind_of
from anyres.runs.bulk.options import PART, BulkOptions, Engine
from anyres.runs.bulk.ranks import own_gpu, own_rank, wait_for
from anyres.runs.bulk.worker import AnswerRow, Worker
from anyres.runs.drift import DriftCounter
from anyres.runs.opened import ModelSpec, TrainedModel, open_model
from anyres.runs.stderr import log_sentences

log = logging.getLogger(__name__)
Answered = Iterator[tuple[int, Sequence[AnswerRow]]]
"""Numbers of parts with their rows, as they come."""


@dataclass(frozen=True)
class Done:
    """A finished bulk prediction, or this process's share of one."""

    out: Path
    images: int  # that have an answer or an error
    unreadable: int | None  # of them; None: a share, which the first process joins with the others

    @property
    def line(self) -> str:
        """For people."""
        if self.unreadable is None:
            return f"{self.images:,} images: answered for {self.out}"
        broken = f" ({self.unreadable:,} unreadable)" if self.unreadable else ""
        return f"{self.images:,} images{broken}: written to {self.out}"


def predict_into(
    out: Path,
    spec: ModelSpec,
    words: Sequence[str],
    options: BulkOptions,
    engine: Engine = Engine(),
    *,
    part: int = PART,
    stdin: Callable[[], bytes] | None = None,
) -> Done:
    """Answer the images that ``words`` stand for (``data.image_list``) and write them to ``out``, whose ending says the
    form: ``.csv``, ``.jsonl`` or ``.parquet``.

    The same call again after a kill answers what is missing, ``part`` images at a time, and nothing twice; the bytes
    of the file are the same as without a kill. An image that cannot be read is a row with its error. ``stdin``: what
    the word ``-`` reads. Raises UserError where ``out`` is there already, or was begun for another model, other options
    or other words.
    """
    check_out(out)
    rank = own_rank()
    with alone(out, rank.rank), own_gpu(rank):
        if out.exists() and not is_begun(out):
            raise UserError(f"{out} is there already: remove it, or name another file")
        trained = open_model(spec)
        options = replace(options, sizes=options.sizes or _own_size(trained, options))
        check_out(out, kind_of(trained))
        job = _job(out, trained, options, Inputs(words, part, stdin), rank)
        missing = [number for number in job.missing() if number % rank.world == rank.rank]
        try:
            with _progress(job) as step:
                for number, rows in _answers(job, missing, spec, options, engine, trained):
                    job.write(number, rows)
                    step(len(rows))
        except UserError:
            if not job.answered():
                job.remove()
            raise
        if rank.rank:
            return Done(out, sum(map(job.listed.rows_of, missing)), None)
        wait_for(lambda: None if job.missing() else True, "the parts of other processes")
        drift = DriftCounter(trained, cascade=options.cascade)
        done = Done(out, len(job), join(job, kind_of(trained), drift))
        job.remove()
    drift.tell()
    return done


@dataclass(frozen=True)
class Inputs:
    """What names the images of a new job."""

    words: Sequence[str]
    part: int  # images of a part
    stdin: Callable[[], bytes] | None = None  # what the word ``-`` reads; None: this process's


def _own_size(trained: TrainedModel, options: BulkOptions) -> tuple[Size, ...]:
    return () if options.cascade else (trained.recipe.views.parsed[0],)


def _job(out: Path, trained: TrainedModel, options: BulkOptions, inputs: Inputs, rank: Rank) -> Job:
    """The job that was begun for ``out``, with its list as it was then, or a new one, which the first process makes."""
    words = read_words(inputs.words, inputs.stdin)
    asked = asked_of(trained, options, [word.identity for word in words])
    if rank.rank:
        return wait_for(lambda: continue_job(out, asked), "the list of images")
    job = continue_job(out, asked)
    if job is None:
        images, notes = wanted_images(words)
        log_sentences(notes)
        return begin_job(out, asked, images, inputs.part)
    log.info("continuing %s: %s of %s images are answered", out, f"{job.answered():,}", f"{len(job):,}")
    return job


def _answers(
    job: Job, missing: Sequence[int], spec: ModelSpec, options: BulkOptions, engine: Engine, trained: TrainedModel
) -> Answered:
    """The rows of the parts that are missing, by the engine."""
    if not missing:
        return iter(())
    if engine.name == "ray":
        from anyres.runs.bulk.on_ray import answers_on_ray

        return answers_on_ray(job, missing, spec, options, engine, digest_of(trained.model.state_dict()))
    return _answers_here(job, missing, Worker(spec, options, trained))


def _answers_here(job: Job, missing: Sequence[int], worker: Worker) -> Answered:
    try:
        yield from worker.answer_parts((number, job.listed.read(number)) for number in missing)
    finally:
        worker.close()


@contextmanager
def _progress(job: Job) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, of all images, that begins where the job stands; told of so many more."""
    columns = (TextColumn("images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True, disable=not get_console().is_terminal) as bar:
        task = bar.add_task("images", total=len(job), completed=job.answered())
        yield lambda count: bar.advance(task, count)
