"""What frozen features are worth: k nearest neighbours and a linear classifier on the pooled vector of any model.

After DINO (Caron et al., ICCV 2021) and its official evaluation: neighbours by cosine similarity, voting with
exp(similarity / 0.07); a linear layer trained by SGD with momentum 0.9, its rate falling to nought along a cosine.
Differences: any number of classes and any small set; the linear layer sees each image's one evaluation view, where the
official script draws random crops and flips anew in each epoch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Float32, Int64
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from anyres.config import UserError, config
from anyres.evaluation.evaluator import EvalSettings, evaluating
from anyres.evaluation.metrics import wilson
from anyres.flow import Batch
from anyres.models.contract import Backbone
from anyres.storage import atomic_write

TEMPERATURE = 0.07
NUM_NEIGHBORS = 20
"""How many vote where one number has to be chosen: of a model trained without labels."""
MOMENTUM = 0.9
ROOM = 2**24  # numbers of a chunk's similarities and votes: 64 MiB of float32

Hits = tuple[Bool[Tensor, " _"], Bool[Tensor, " _"]]
"""Of each image: whether its class came first, and whether it was among the first five."""


@config
class ProbeConfig:
    """``k``: neighbours that vote, each more than there are being all. ``epochs``, ``lr`` (for a batch of 256, scaled
    by the batch), ``batch_size`` and ``seed`` are of the linear layer."""

    k: tuple[int, ...] = (10, 20, 100, 200)
    epochs: int = 100
    lr: float = 0.001
    batch_size: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.k or min(self.k) < 1:
            raise UserError(f"k={','.join(map(str, self.k))}: give numbers of neighbours, as 10,20")
        if self.epochs < 1 or self.batch_size < 1 or not self.lr > 0:
            raise UserError("epochs and batch size must be 1 or more, and lr above 0")


@dataclass(frozen=True, eq=False)
class Pooled:
    """The pooled vectors of n labelled images, on the CPU, in the order of the set."""

    vectors: Float32[Tensor, "n c"]
    target: Int64[Tensor, " n"]


@dataclass(frozen=True)
class Probed:
    """One probe's answer on ``n`` images: shares in [0, 1], ``low`` and ``high`` the 95 % Wilson interval of top-1."""

    name: str
    top1: float
    low: float
    high: float
    top5: float
    n: int


def pool(model: Backbone, batches: Iterable[Batch], n: int, how: EvalSettings) -> Pooled:
    """The vectors that the model's classifier would see, of at most ``n`` images; those without a label are left out.

    Raises UserError for vectors that are not finite, and where nothing is labelled.
    """
    vectors: Tensor | None = None
    target, done = torch.empty(n, dtype=torch.int64), 0
    with evaluating(model), torch.inference_mode():
        for batch in batches:
            labels = batch.targets.of(0)
            labelled = labels >= 0
            if not labelled.any():
                continue
            pixels = batch.views[0][labelled].to(how.device)
            with torch.autocast(how.device.type, dtype=how.autocast, enabled=how.autocast is not None):
                found = model.forward_head(model.forward_features(pixels), pre_logits=True)  # (b, c)
            if vectors is None:
                vectors = torch.empty(n, found.shape[1])
            end = done + len(found)
            vectors[done:end], target[done:end] = found.float().cpu(), labels[labelled].cpu()
            done = end
    if vectors is None or not done:
        raise UserError("there is no image to probe: none has a label")
    vectors, target = vectors[:done].clone(), target[:done].clone()
    if not vectors.isfinite().all():
        raise UserError("the model's features are not finite")
    return Pooled(vectors, target)


def keep(pooled: Pooled, path: Path, about: Mapping[str, str]) -> None:
    """Write vectors and labels as safetensors, replacing ``path`` at once; ``about`` says what they are of."""
    with atomic_write(path) as draft:
        save_file({"vectors": pooled.vectors, "target": pooled.target}, draft, metadata=dict(about))


def kept(path: Path, about: Mapping[str, str]) -> Pooled | None:
    """What ``keep`` wrote there, None if nothing did. Raises UserError if it is of something else."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            found = file.metadata() or {}
            pooled = Pooled(file.get_tensor("vectors"), file.get_tensor("target"))
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} holds no kept features ({error}): choose another --keep, or remove it") from None
    alike = pooled.target.shape == pooled.vectors.shape[:1] and pooled.target.dtype == torch.int64
    if pooled.vectors.ndim != 2 or not alike:
        raise UserError(f"{path} holds no kept features (its shapes): choose another --keep, or remove it")
    if not pooled.vectors.isfinite().all():
        raise UserError(f"{path} holds kept features that are not finite: choose another --keep, or remove it")
    for key, value in about.items():
        if found.get(key) != value:
            raise UserError(f"{path} holds features of another {key}: choose another --keep, or remove it")
    return pooled


def knn(train: Pooled, test: Pooled, classes: int, ks: Iterable[int], device: torch.device) -> list[Probed]:
    """Weighted k nearest neighbours for each of ``ks``, in chunks of test images that keep to ROOM numbers.

    A class that got no vote is never among the five (official code takes any). Raises UserError as ``_check`` does.
    """
    _check(train, test, classes)
    n = len(train.vectors)
    ks = sorted({min(k, n) for k in ks})
    bank, labels = F.normalize(train.vectors, dim=1).to(device).T, train.target.to(device)
    chunk = max(1, ROOM // (n + 2 * ks[-1] + classes))
    hits: dict[int, list[Hits]] = {k: [] for k in ks}
    for start in range(0, len(test.vectors), chunk):
        part = slice(start, start + chunk)
        queries = F.normalize(test.vectors[part], dim=1).to(device)
        near, place = (queries @ bank).topk(ks[-1], dim=1)  # (m, k), nearest first
        weight, voted = (near / TEMPERATURE).exp(), labels[place]
        for k in ks:
            votes = torch.zeros(len(queries), classes, device=device)
            votes.scatter_add_(1, voted[:, :k], weight[:, :k])
            hits[k].append(_hits(votes, test.target[part].to(device), least=0.0))
    return [_probed(f"{k}-NN", hits[k]) for k in ks]


class NeighborClassifier(nn.Module):
    """A backbone that asks the ``NUM_NEIGHBORS`` nearest of the images in ``bank``: view (b, 3, h, w) -> logits (b, k).

    The vote is that of ``knn``; a class's probability is its share of it, with the vote of one more neighbour divided
    evenly among all classes, so that none is 0. Classes without a vote are thus equal, and any may be among the five.
    """

    def __init__(self, backbone: Backbone, bank: Pooled, classes: int, device: torch.device) -> None:
        super().__init__()
        self.backbone, self.classes = backbone, classes
        self.k = min(NUM_NEIGHBORS, len(bank.vectors))
        self.bank, self.labels = F.normalize(bank.vectors, dim=1).to(device).T, bank.target.to(device)

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float32[Tensor, "b k"]:
        pooled = self.backbone.forward_head(self.backbone.forward_features(x), pre_logits=True)
        with torch.autocast(x.device.type, enabled=False):
            queries = torch.split(F.normalize(pooled.float(), dim=1), max(1, ROOM // self.bank.shape[1]))
            found = [(part @ self.bank).topk(self.k, dim=1) for part in queries]
        near, place = (torch.cat(column) for column in zip(*found, strict=True))  # (b, neighbours)
        weight = (near / TEMPERATURE).softmax(1)
        shares = weight.new_zeros(len(x), self.classes).scatter_add_(1, self.labels[place], weight)
        return ((self.k * shares + 1 / self.classes) / (self.k + 1)).log()


def linear(
    train: Pooled,
    test: Pooled,
    classes: int,
    how: ProbeConfig,
    device: torch.device,
    watch: Callable[[range], Iterable[int]] = lambda epochs: epochs,
) -> Probed:
    """A linear layer trained on ``train``, scored on ``test``. Raises UserError as ``_check`` does, or if it diverges.

    ``watch`` may show the epochs go by. A function of (features, how): its draws are made on the CPU.
    """
    _check(train, test, classes)
    draws = torch.Generator().manual_seed(how.seed)
    layer = nn.Linear(train.vectors.shape[1], classes)
    with torch.no_grad():
        layer.weight.normal_(0, 0.01, generator=draws)
        layer.bias.zero_()
    layer.to(device)
    peak = how.lr * how.batch_size / 256
    optimizer = torch.optim.SGD(layer.parameters(), lr=peak, momentum=MOMENTUM)
    vectors, target = train.vectors.to(device), train.target.to(device)
    for epoch in watch(range(how.epochs)):
        for group in optimizer.param_groups:
            group["lr"] = peak * 0.5 * (1 + math.cos(math.pi * epoch / how.epochs))
        order = torch.randperm(len(vectors), generator=draws).to(device)
        for start in range(0, len(order), how.batch_size):
            mine = order[start : start + how.batch_size]
            loss = F.cross_entropy(layer(vectors[mine]), target[mine])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    if not layer.weight.isfinite().all():
        raise UserError(f"the linear probe diverged at lr={how.lr:g}: give a lower one")
    chunk, hits = max(1, ROOM // classes), []
    with torch.no_grad():
        for start in range(0, len(test.vectors), chunk):
            part = slice(start, start + chunk)
            logits = layer(test.vectors[part].to(device))
            hits.append(_hits(logits, test.target[part].to(device), least=-math.inf))
    return _probed("linear", hits)


def _hits(scores: Float[Tensor, "m k"], target: Int64[Tensor, " m"], least: float) -> Hits:
    """Whether each target's score, which must be above ``least``, is the highest, and among the five highest."""
    own = scores.gather(1, target[:, None])  # (m, 1)
    fifth = ((scores > own).sum(dim=1) < 5) & (own[:, 0] > least)
    return (scores.argmax(dim=1) == target).cpu(), fifth.cpu()


def _probed(name: str, hits: list[Hits]) -> Probed:
    first, five = (torch.cat(column) for column in zip(*hits, strict=True))
    n, right = len(first), int(first.sum())
    return Probed(name, right / n, *wilson(right, n), int(five.sum()) / n, n)


def _check(train: Pooled, test: Pooled, classes: int) -> None:
    """Raises UserError unless both sets are of one model and of ``classes`` classes."""
    if train.vectors.shape[1] != test.vectors.shape[1]:
        raise UserError(f"features of {train.vectors.shape[1]} and of {test.vectors.shape[1]} channels: two models")
    highest = int(max(train.target.max(), test.target.max()))
    if highest >= classes:
        raise UserError(f"an image has class index {highest}, but there are {classes} classes")
