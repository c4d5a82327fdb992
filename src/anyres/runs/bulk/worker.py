"""The one worker of every engine: rows in, rows out. It opens the model once and answers part after part."""

from __future__ import annotations

import warnings
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, NamedTuple, TypedDict

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from anyres.config import UserError
from anyres.data.clips import Clip, decode_clip
from anyres.data.decode import Decoded, Unreadable, decode_in_thread
from anyres.data.image_list import ListedImage
from anyres.data.mix import normalize
from anyres.data.views import eval_plan, eval_view
from anyres.deploy.predictor import EngineOptions, Predictor
from anyres.flow import Batch, Labels, Size
from anyres.models.contract import Backbone
from anyres.ops.processors import processors
from anyres.runs.bounds import check_sizes_fit
from anyres.runs.bulk.options import BulkOptions
from anyres.runs.cascade import open_cascade, predictors_for
from anyres.runs.inputs import frames_of
from anyres.runs.opened import ModelSpec, TrainedModel, open_model
from anyres.runs.predict import PredictOptions, answerer, seen_side
from anyres.tasks import AnswerOptions

MOST_THREADS = 8
"""That decode, or that answer side by side."""
HELD_BYTES = 2**27
"""Of decoded images that wait for a model which answers them one by one."""


class AnswerRow(TypedDict):
    """What is said of one image: plain values."""

    image: str  # as the list calls it
    answer: dict[str, Any]  # what the task says; {} where it cannot be read
    size: str  # at which it was seen; "" where it was not
    error: str  # why it cannot be read; "" where it can


class Seen(NamedTuple):
    """An image ready for the model."""

    pixels: UInt8[Tensor, "c h w"]
    size: Size | None  # at which it is seen; None: whoever answers decides


class Said(NamedTuple):
    """What is said of an image that could be read."""

    values: Mapping[str, Any]  # of the task's answer
    size: str


Part = tuple[int, Sequence[ListedImage]]
"""Its number, and its images."""
Answers = Sequence[Said | Unreadable]
"""Of some images, in their order."""
AnsweredPart = tuple[int, Sequence[ListedImage], Answers]


class Worker:
    """``spec``'s model, ready to answer images as ``options`` say; ``trained``: the same, where it is open already.

    Raises UserError where the model or the options cannot.
    """

    def __init__(self, spec: ModelSpec, options: BulkOptions, trained: TrainedModel | None = None) -> None:
        self.trained = trained or open_model(spec)
        self.options = options
        self.how = AnswerOptions(options.top, options.threshold)
        self.sizes = options.sizes or (self.trained.recipe.views.parsed[0],)
        self.channels = len(self.trained.recipe.data.mean)
        self.predictors: dict[Size, Predictor] = {}
        self._check()
        size = None if options.cascade else self.sizes[0]
        one = PredictOptions(size, options.backend, options.cascade, options.huge_pages, tile=options.tile)
        self.batched = _is_plain(self.trained, options)
        self.side = max(seen_side(self.trained, replace(one, size=size)) or 0 for size in self.sizes) or None
        engine = EngineOptions(options.backend or "eager", options.batch, options.huge_pages)
        self.gathered: Callable[[Sequence[Tensor]], list[Said]] | None = None
        if self.batched:
            self.predictors = predictors_for(self.trained, self.sizes, engine)
        elif options.cascade:
            self.gathered = self._through_cascade(engine)
        else:
            self.gathered = self._one_by_one(one)
        self.side_by_side = self._is_eager_on_cpu()
        threads = torch.get_num_threads() if self.side_by_side else processors()
        count = min(MOST_THREADS, threads)
        each = threads // count if self.side_by_side else 1
        self.threads = ThreadPoolExecutor(count, "answers", torch.set_num_threads, (each,))

    def answer(self, images: Sequence[ListedImage]) -> list[AnswerRow]:
        """A row for each image, in their order."""
        return next(rows for _, rows in self.answer_parts([(0, images)]))

    def answer_parts(self, parts: Iterable[Part]) -> Iterator[tuple[int, list[AnswerRow]]]:
        """The same of numbered parts, one after another; the images of the next are read meanwhile."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, in all threads
            for number, images, said in self._side_by_side(parts) if self.side_by_side else self._in_turn(parts):
                yield number, [_row(image, found) for image, found in zip(images, said, strict=True)]

    def close(self) -> None:
        """End the threads."""
        self.threads.shutdown(cancel_futures=True)

    def _check(self) -> None:
        trained = self.trained
        if not trained.model.num_classes:
            raise UserError(f"{trained.name} has no classifier: it cannot name classes")
        if self.how.threshold is not None and not trained.task.takes_threshold:
            raise UserError(
                f"{trained.name} gives one answer an image: --threshold is for several labels or objects, leave it out"
            )
        if self.options.cascade and self.options.sizes:
            raise UserError("--cascade chooses the size for every image: leave out --size")
        trained.model.check_sizes(self.sizes)
        check_sizes_fit(self.sizes, trained.recipe, self.options.batch)

    def _is_eager_on_cpu(self) -> bool:
        """Whether several threads can run the model at a time, and gain by it."""
        eager = all(each.backend.engine == "eager" and each.device.type == "cpu" for each in self.predictors.values())
        return self.batched and eager and torch.get_num_threads() > 1

    def _side_by_side(self, parts: Iterable[Part]) -> Iterator[AnsweredPart]:
        """Each thread reads some images and answers them, so that none waits for another: small images cost more in
        Python, which one thread runs at a time, than in the model."""
        at_once = self.options.batch * len(self.sizes)
        begun: deque[tuple[int, Sequence[ListedImage], list[Future[Answers]]]] = deque()

        def ended() -> AnsweredPart:
            number, images, some = begun.popleft()
            return number, images, [found for each in some for found in each.result()]

        for number, images in parts:
            cut = [images[i : i + at_once] for i in range(0, len(images), at_once)]
            begun.append((number, images, [self.threads.submit(self._answer_some, some) for some in cut]))
            if len(begun) > 1:
                yield ended()
        while begun:
            yield ended()

    def _answer_some(self, images: Sequence[ListedImage]) -> Answers:
        return _in_order(self._in_batches(map(self._read, images)))

    def _in_turn(self, parts: Iterable[Part]) -> Iterator[AnsweredPart]:
        """This thread runs the model, and others decode for it."""
        for number, images, seen in self._read_ahead(parts):
            yield number, images, _in_order(self._in_batches(seen) if self.batched else self._in_groups(seen))

    def _read_ahead(
        self, parts: Iterable[Part]
    ) -> Iterator[tuple[int, Sequence[ListedImage], Iterator[Seen | Unreadable]]]:
        """Each part with its images, which threads decode: so many ahead that none waits, whatever part they are of."""
        ahead = 2 * self.options.batch if self.batched else 2 * MOST_THREADS
        waiting: deque[Future[Seen | Unreadable]] = deque()
        begun: deque[Part] = deque()

        def images() -> Iterator[ListedImage]:
            for number, some in parts:
                begun.append((number, some))
                yield from some

        unread = images()

        def fill() -> None:
            while len(waiting) < ahead and (image := next(unread, None)) is not None:
                waiting.append(self.threads.submit(self._read, image))

        def taken(count: int) -> Iterator[Seen | Unreadable]:
            for _ in range(count):
                found = waiting.popleft()
                fill()
                yield found.result()

        fill()
        while begun:
            number, some = begun.popleft()
            yield number, some, taken(len(some))

    def _read(self, image: ListedImage) -> Seen | Unreadable:
        """An image as the model sees it, or why it cannot be read. In a thread."""
        try:
            decoded = self._decoded(image)
        except Unreadable as error:
            return error
        if not self.batched:
            return Seen(decoded.image, None)
        size = self._size_for(decoded)
        how = self.predictors[size].preprocessing
        return Seen(eval_view(decoded.image, size, how.crop, how.warp, how.interpolation), size)

    def _decoded(self, image: ListedImage) -> Decoded:
        record = image.record()
        if frames_of(self.trained.recipe) is None:
            return decode_in_thread(record, channels=self.channels, view_side=self.side)
        return decode_clip(replace(record, source=Clip(record.source, how=self.trained.recipe.clip)))

    def _size_for(self, decoded: Decoded) -> Size:
        """The largest of the sizes for which the image need not be enlarged; if there is none, the smallest."""
        if len(self.sizes) == 1:
            return self.sizes[0]
        own = decoded.view.geometry.source
        ascending = sorted(self.sizes, key=lambda size: (size.height * size.width, size))
        filled = [size for size in ascending if not self._enlarges(own, size)]
        return filled[-1] if filled else ascending[0]

    def _enlarges(self, own: Size, size: Size) -> bool:
        how = self.predictors[size].preprocessing
        return eval_plan(own, size, how.crop, how.warp).enlarges

    def _in_batches(self, seen: Iterator[Seen | Unreadable]) -> Iterator[tuple[int, Said | Unreadable]]:
        """Answers by the image's place in its part: a batch for each size, as soon as it is full."""
        buckets: defaultdict[Size, list[tuple[int, Tensor]]] = defaultdict(list)
        for place, image in enumerate(seen):
            if isinstance(image, Unreadable):
                yield place, image
                continue
            assert image.size is not None
            bucket = buckets[image.size]
            bucket.append((place, image.pixels))
            if len(bucket) == self.options.batch:
                yield from self._run(image.size, buckets.pop(image.size))
        for size, bucket in buckets.items():
            yield from self._run(size, bucket)

    def _run(self, size: Size, bucket: Sequence[tuple[int, Tensor]]) -> Iterator[tuple[int, Said]]:
        predictor, count = self.predictors[size], torch.arange(len(bucket))
        how = predictor.preprocessing
        views = torch.stack([pixels for _, pixels in bucket])
        made = normalize(Batch((views,), Labels(count), count), how.mean, how.std, predictor.device)
        logits = predictor.forward(made.views[0]).float().cpu()
        probabilities = logits.softmax(1) if self.trained.task.activation == "softmax" else logits.sigmoid()
        for (place, _), each in zip(bucket, self._finite(probabilities), strict=True):
            yield place, self._said(each, size)

    def _in_groups(self, seen: Iterator[Seen | Unreadable]) -> Iterator[tuple[int, Said | Unreadable]]:
        """The same where images are gathered as they are, as many as memory likes."""
        assert self.gathered is not None
        some: list[tuple[int, Tensor]] = []
        for place, image in enumerate(seen):
            if isinstance(image, Unreadable):
                yield place, image
                continue
            some.append((place, image.pixels))
            if sum(pixels.nbytes for _, pixels in some) > HELD_BYTES:
                yield from self._group(some)
                some = []
        yield from self._group(some)

    def _group(self, some: Sequence[tuple[int, Tensor]]) -> Iterator[tuple[int, Said]]:
        assert self.gathered is not None
        found = self.gathered([pixels for _, pixels in some]) if some else []
        yield from zip((place for place, _ in some), found, strict=True)

    def _through_cascade(self, engine: EngineOptions) -> Callable[[Sequence[Tensor]], list[Said]]:
        """Images through the run's cascade, each with the size that answered. Raises UserError where there is none."""
        if self.trained.folder is None:
            raise UserError(f"{self.trained.name} is no run: `anyres cascade RUN` chooses a cascade for one")
        runner = open_cascade(self.trained, self.trained.folder, engine)

        def answers(pictures: Sequence[Tensor]) -> list[Said]:
            probabilities, stages = runner.answers(pictures)
            sizes = (runner.stages[stage].size for stage in stages.tolist())
            return [self._said(each, size) for each, size in zip(self._finite(probabilities), sizes, strict=True)]

        return answers

    def _one_by_one(self, options: PredictOptions) -> Callable[[Sequence[Tensor]], list[Said]]:
        """Images as `anyres predict` answers one: maps, boxes, clips, tiles."""
        answer = answerer(self.trained, options, self.how)
        return lambda pictures: [Said(each.values, str(self.sizes[0])) for each in answer(pictures)]

    def _said(self, probabilities: Float32[Tensor, " k"], size: Size) -> Said:
        return Said(self.trained.task.answer(probabilities, self.how).values, str(size))

    def _finite(self, probabilities: Float32[Tensor, "b k"]) -> Float32[Tensor, "b k"]:
        if not probabilities.isfinite().all():
            raise UserError(f"{self.trained.name} answers with numbers that are not finite: its weights are of no use")
        return probabilities


def _in_order(said: Iterable[tuple[int, Said | Unreadable]]) -> Answers:
    """Answers by their place."""
    return [found for _, found in sorted(said, key=lambda each: each[0])]


def _row(image: ListedImage, found: Said | Unreadable) -> AnswerRow:
    if isinstance(found, Unreadable):
        return AnswerRow(image=image.name, answer={}, size="", error=found.reason)
    return AnswerRow(image=image.name, answer=dict(found.values), size=found.size, error="")


def _is_plain(trained: TrainedModel, options: BulkOptions) -> bool:
    """Whether images are one vector of classes each, at sizes that are known before."""
    plain = trained.task.activation != "none" and isinstance(trained.model, Backbone)
    if len(options.sizes) > 1 and not plain:
        raise UserError(f"{trained.name} answers at one size: give one --size")
    return plain and not options.cascade and options.tile is None and frames_of(trained.recipe) is None
