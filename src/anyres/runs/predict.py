"""What a model says of images: one by one or many, by any engine, at one size or through a cascade of sizes."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from jaxtyping import Float32
from torch import Tensor

from anyres.config import UserError
from anyres.data.clips import Clip, decode_clip
from anyres.data.decode import Unreadable, decode
from anyres.data.geometry import whole
from anyres.data.mix import normalize
from anyres.deploy.predictor import EngineOptions, Picture, listed, pixels_of, size_of
from anyres.flow import Batch, Geometry, Labels, Record, Size
from anyres.runs.bounds import check_sizes_fit
from anyres.runs.inputs import crop_ratio, frames_of, framing_of
from anyres.runs.opened import Model, TrainedModel, open_model
from anyres.runs.stderr import show_log
from anyres.runs.tiles import tile_answerer
from anyres.storage import write_bytes
from anyres.tasks import Answer, AnswerOptions, Output

T = TypeVar("T")
AT_A_TIME = 64  # images that are decoded before they are answered, at most
BYTES_AT_A_TIME = 2**27  # of their pixels: beyond, no more are decoded


@dataclass(frozen=True)
class PredictOptions:
    """How images are answered: at ``size`` (None: the largest it was trained at), by ``backend`` (None: PyTorch as it
    is), or through the ``cascade`` that was chosen for the run."""

    size: Size | None = None
    backend: str | None = None
    cascade: bool = False
    huge_pages: bool = False  # move this process's memory into huge pages (Linux)
    draw: Path | None = None  # a folder for pictures of the answers
    tile: int | None = None  # side in pixels of the overlapping parts that an image is answered in


def predict(
    model: Model,
    images: Picture | Sequence[Picture],
    *,
    size: str | int | Size | None = None,
    backend: str | None = None,
    cascade: bool = False,
    top: int = 3,
    threshold: float | None = None,
    tile: int | None = None,
) -> list[Answer]:
    """What a model says of each image.

    ``images``: one or several: files, Pillow's images, uint8 tensors (c, h, w), or arrays (h, w) or (h, w, c) in RGB; a
    tensor or array of one more dimension is several. ``size``: a side in pixels or ``"320x192"`` (None:
    the largest it was trained at). ``backend``: ``auto``, ``openvino:bf16``, ... (None: PyTorch as it is). ``cascade``:
    small first, larger where unsure, as `anyres cascade` chose. ``top``: how many classes; ``threshold``: of several
    labels, every one above this probability (None: 0.5). ``tile``: cut images into overlapping tiles of so many pixels,
    each seen at ``size``; boxes are merged, maps averaged (None: each image as a whole).

    Returns an Answer for each image: ``.line`` for people, ``.values`` for programs. Raises UserError, also for an
    image that cannot be read.
    """
    show_log()
    trained = open_model(model)
    options = PredictOptions(size_of(size) if size is not None else None, backend, cascade, tile=tile)
    answer = answerer(trained, options, AnswerOptions(top, threshold))
    channels, side = len(trained.recipe.data.mean), seen_side(trained, options)
    decoded = (pixels_to_ask(trained, image, channels, side) for image in listed(images))
    return [found for some in chunks(decoded) for found in answer(some)]


def predict_files(
    trained: TrainedModel, paths: Iterable[Path], options: PredictOptions, how: AnswerOptions
) -> Iterator[tuple[Path, Answer | Unreadable]]:
    """Each file with its answer, or with why it cannot be read; so many at a time that memory stays bounded."""
    answer = answerer(trained, options, how)
    channels, side = len(trained.recipe.data.mean), seen_side(trained, options)
    named: deque[Path] = deque()
    taken: Counter[str] = Counter()

    def read(path: Path) -> Tensor | Unreadable:
        named.append(path)
        try:
            record = Record(clip_of(trained, path), -1, str(path))
            if isinstance(record.source, Clip):
                return decode_clip(record).image
            return decode(record, channels=channels, view_side=side).image
        except Unreadable as error:
            return error

    for some in chunks(map(read, paths)):
        pictures = [image for image in some if isinstance(image, Tensor)]
        answers = iter(answer(pictures) if pictures else [])
        for image in some:
            path = named.popleft()
            if isinstance(image, Unreadable):
                yield path, image
                continue
            found = next(answers)
            if options.draw is not None:
                draw_answer(found, image, options.draw, _own_name(path, taken), trained.name)
            yield path, found


def clip_of(trained: TrainedModel, path: Path) -> Path | Clip:
    """A file as a record's source: for a model of clips, the clip in the film's middle."""
    return path if frames_of(trained.recipe) is None else Clip(path, how=trained.recipe.clip)


def pixels_to_ask(trained: TrainedModel, picture: Picture, channels: int, side: int | None) -> Tensor:
    """One picture, or the clip of a film's file, uint8 (c, h, w). Raises UserError."""
    if frames_of(trained.recipe) is None or not isinstance(picture, str | Path):
        return pixels_of(picture, channels, side)
    try:
        return decode_clip(Record(clip_of(trained, Path(picture)), -1, str(picture))).image
    except Unreadable as error:
        raise UserError(f"{error.name} is unreadable: {error.reason}") from None


def draw_answer(answer: Answer, picture: Tensor, folder: Path, name: str, model: str) -> None:
    """Write what is drawn of an answer for ``picture``, uint8 (c, h, w), as ``folder/NAME.ENDING``. Raises UserError
    for a task that draws nothing."""
    if answer.drawn is None:
        raise UserError(f"{model} answers for whole images, and nothing is drawn of that: leave out --draw")
    for ending, content in answer.drawn(picture).items():
        write_bytes(folder / f"{name}.{ending}", content)


def _own_name(path: Path, taken: Counter[str]) -> str:
    """The file's name without its ending; with a number where another file had it."""
    taken[path.stem] += 1
    return path.stem if taken[path.stem] == 1 else f"{path.stem}-{taken[path.stem]}"


def seen_side(trained: TrainedModel, options: PredictOptions) -> int | None:
    """The longer side, in pixels, to which an image is resized; None: a cascade resizes it to several, or tiles
    are cut of it."""
    if options.cascade or options.tile:
        return None
    size = options.size or trained.recipe.views.parsed[0]
    return math.ceil(max(size) / crop_ratio(trained.recipe))


def answerer(
    trained: TrainedModel, options: PredictOptions, how: AnswerOptions
) -> Callable[[Sequence[Tensor]], list[Answer]]:
    """A function from pictures, uint8 (c, h, w), to answers. Raises UserError where the model or the options cannot."""
    if not trained.model.num_classes:
        raise UserError(f"{trained.name} has no classifier: it cannot name classes")
    if options.cascade and options.size:
        raise UserError("--cascade chooses the size for every image: leave out --size")
    if options.cascade and trained.task.activation != "softmax":
        raise UserError(f"{trained.name} does not give one class an image, as a cascade wants it: leave out --cascade")
    if how.threshold is not None and not trained.task.takes_threshold:
        raise UserError(
            f"{trained.name} gives one answer an image: --threshold is for several labels or objects, leave it out"
        )
    size = options.size or trained.recipe.views.parsed[0]
    if not options.cascade:
        trained.model.check_sizes([size])
        check_sizes_fit([size], trained.recipe, 1)
    if options.tile is not None:
        if options.cascade or options.backend:
            raise UserError("--tile shows tiles to the model as it is: leave out --cascade and --backend")
        return tile_answerer(trained, size, options.tile, how)
    engine = EngineOptions(options.backend or "eager", batch=1, huge_pages=options.huge_pages)
    if options.cascade:
        outputs = _cascade_outputs(trained, engine)
    elif options.backend:
        from anyres.runs.cascade import predictor_for

        predictor = predictor_for(trained, size, engine)

        def outputs(pictures: Sequence[Tensor]) -> Sequence[Output]:
            each = [predictor.forward(predictor.prepare([picture])) for picture in pictures]
            return list(activate(torch.cat(each).float().cpu(), trained))
    else:

        def outputs(pictures: Sequence[Tensor]) -> Sequence[Output]:
            return [plain_output(trained, picture, size) for picture in pictures]

    def answers(pictures: Sequence[Tensor]) -> list[Answer]:
        found = []
        for output, picture in zip(outputs(pictures), pictures, strict=True):
            if not _is_finite(output):
                raise UserError(f"{trained.name} answers with numbers that are not finite: its weights are of no use")
            seen = None if options.cascade else _seen(trained, picture, size)
            found.append(trained.task.answer(output, replace(how, of_size=Size(*picture.shape[-2:]), geometry=seen)))
        return found

    return answers


def _is_finite(output: Output) -> bool:
    tensors = (output,) if isinstance(output, Tensor) else output.values()
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def _seen(trained: TrainedModel, picture: Tensor, size: Size) -> Geometry:
    """Where the pixels come from that ``plain_output`` shows of a picture."""
    return framing_of(trained.recipe, size).geometry(whole(picture).geometry, size)


def _cascade_outputs(trained: TrainedModel, engine: EngineOptions) -> Callable[[Sequence[Tensor]], Sequence[Output]]:
    """Calibrated probabilities (n, k) of pictures through the run's cascade."""
    if trained.folder is None:
        raise UserError(f"{trained.name} is no run: `anyres cascade RUN` chooses a cascade for one")
    from anyres.runs.cascade import open_cascade

    runner = open_cascade(trained, trained.folder, engine)

    return lambda pictures: list(runner.probabilities(pictures))


def plain_output(trained: TrainedModel, image: Tensor, size: Size) -> Output:
    """The model's output for one image, uint8 (c, h, w), seen at ``size`` as evaluation does, after the activation."""
    view = framing_of(trained.recipe, size).view(whole(image), size).pixels
    batch = Batch((view[None],), Labels(torch.tensor([-1])), torch.tensor([0]))
    pixels = normalize(batch, trained.recipe.data.mean, trained.recipe.data.std, trained.device).views[0]
    with torch.inference_mode(), torch.autocast(trained.device.type, trained.autocast, trained.autocast is not None):
        output: Tensor | Sequence[Mapping[str, Tensor]] = trained.model(pixels)
    if isinstance(output, Tensor):
        return activate(output.float(), trained)[0].cpu()
    return {name: value.cpu() for name, value in output[0].items()}


def activate(output: Float32[Tensor, "b k ..."], trained: TrainedModel) -> Float32[Tensor, "b k ..."]:
    """Probabilities, where the task has them."""
    if trained.task.activation == "softmax":
        return output.softmax(1)
    return output.sigmoid() if trained.task.activation == "sigmoid" else output


def chunks(pictures: Iterable[T]) -> Iterator[list[T]]:
    """Some pictures at a time: so many, or so few, that memory stays bounded."""
    some: list[T] = []
    size = 0
    for picture in pictures:
        some.append(picture)
        size += picture.nbytes if isinstance(picture, Tensor) else 0
        if len(some) == AT_A_TIME or size >= BYTES_AT_A_TIME:
            yield some
            some, size = [], 0
    if some:
        yield some
