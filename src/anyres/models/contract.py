"""What every family promises: timm's model contract, and a few methods of ours.

Five methods every family writes itself, and ``forward``; the others are what a model can do beyond that, and say here
that it cannot, or do nothing.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeGuard

from jaxtyping import Float
from torch import Tensor, nn

from anyres.config import UserError

Format = Literal["NCHW", "NLC"]
"""Layout of intermediate features: maps (b, c, h, w), or tokens (b, n, c)."""
Style = Literal["detection", "segmentation"]
"""What a pyramid is for: papers normalise its maps in two ways, and a plain ViT is given two kinds of neck."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What other rooms need to know of a family, so that none of them names it."""

    attention: tuple[type[nn.Module], ...] = ()
    """The attention modules that ``train.trainable=attention`` trains, by type: names mislead, as ResMLP's ``attn`` is
    no attention and a parallel block's second is called ``attn1``."""
    several_sizes: Mapping[str, Any] = field(default_factory=dict)
    """Options that a model is built with when it is trained at several sizes."""
    warp_from: int | None = None
    """The official evaluation resizes images of so many pixels and more to the square, and crops smaller ones."""
    windows: Literal["tokens", "grid"] | None = None
    """What ``run_block`` takes beside the block, tokens alone or with their grid, of a plain ViT whose attention can be
    put into windows (it has ``embed``, ``blocks`` and ``norm``); None: it cannot."""
    rounds_up: bool = True
    """Whether maps have a position for what is left of the image at the right and at the bottom."""
    dense: Mapping[tuple[str, str], Mapping[str, Any]] = field(default_factory=dict)
    """(style, official name) -> the options with which the official dense code builds the backbone."""
    fold: str | None = None
    """The deploy form as ``module:name``, which is called with the model; None: it is deployed as it is."""
    look: str | None = None
    """How its attention is read as a map, as ``module:name`` (``anyres.maps.readers``); None: by gradients alone."""
    timm: Callable[[Any], tuple[str, dict[str, Any]] | None] | None = None
    """A model -> the name and arguments with which timm by itself builds it and reads its weights, at the size of its
    table; None: timm has no such model."""


def shape_in_timm(config: Any) -> dict[str, Any]:
    """The arguments by which timm builds a plain transformer of our config's shape."""
    return {
        "img_size": config.img_size,
        "patch_size": config.patch_size,
        "embed_dim": config.dim,
        "depth": config.depth,
        "num_heads": config.heads,
        "in_chans": config.in_chans,
    }


class Loadable(nn.Module):
    """What ``load_weights`` fills: a backbone, or what is built on one."""

    pretrained_cfg: dict[str, Any]
    """timm's: input_size, mean, std, interpolation, crop_pct, classifier, first_conv, num_classes."""

    @property
    def called(self) -> str:
        """What messages call it: its official name, or its class where it was not made by one."""
        return str(self.pretrained_cfg.get("architecture", type(self).__name__))

    def convert_state_dict(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A file's state dict in this model's names, and on its grid. Raises UserError if that cannot be."""
        return state

    def pretrained_state(self) -> dict[str, Tensor] | None:
        """The weights that a foreign library publishes for this model, with their own classifier; None: none does."""
        return None


class Network(Loadable, ABC):
    """What a task trains, measures and asks: a backbone with its classifier, or what is built on a backbone."""

    traits: ClassVar[Traits] = Traits()
    num_classes: int
    """Classes it answers with; 0: it has no head."""

    @abstractmethod
    def get_classifier(self) -> nn.Module:
        """The last layer, with an output for each class."""

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:  # noqa: ARG002
        """timm's regular expressions that sort parameters into layers, for layer-wise learning rates."""
        raise UserError(f"{self.called} does not say in which layer a parameter is: set optim.layer_decay=1")

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that take no weight decay, beyond biases and vectors."""
        return set()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward pass instead of storing their activations."""
        if enable:
            raise UserError(f"{self.called} cannot recompute its blocks: set train.grad_checkpointing=false")

    def attention_modules(self) -> list[nn.Module]:
        """The modules that ``train.trainable=attention`` trains; empty if there are none."""
        return [module for module in self.modules() if isinstance(module, self.traits.attention)]

    def check_sizes(self, sizes: Iterable[tuple[int, int]], *, training: bool = False) -> None:
        """Raises UserError, one line, for the first (height, width) in pixels that the model cannot take.

        ``training``: all of them in one training run. A family of ours takes every size.
        """


class Backbone(Network):
    """A backbone with its classifier, for images of any height and width.

    ``model(x)`` is the logits (b, k), in training as in evaluation, and equals
    ``get_classifier()(forward_head(forward_features(x), pre_logits=True))``. With ``num_classes`` 0 it is the pooled
    vector.
    """

    two_heads: bool = False
    """A second classifier, for a teacher's answers: the model then has ``heads``, as the distilled DeiT."""
    num_features: int
    """Channels of the pooled vector."""
    feature_info: list[dict[str, Any]]
    """For each feature of ``forward_intermediates``: num_chs, reduction (pixels per token), module."""

    @abstractmethod
    def forward_features(self, x: Float[Tensor, "b k h w"]) -> Float[Tensor, "b ..."]:
        """Image -> the family's features after the final norm: tokens (b, n, c) or a map (b, c, h, w)."""

    @abstractmethod
    def forward_head(self, x: Float[Tensor, "b ..."], pre_logits: bool = False) -> Float[Tensor, "b _"]:
        """Features -> logits (b, k); with ``pre_logits`` the pooled vector (b, c) that the classifier sees."""

    @abstractmethod
    def patch_tokens(self, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b n c"]:
        """Features -> the normalised patch tokens in row-major order, without class token."""

    def forward_intermediates(
        self,
        x: Float[Tensor, "b k h w"],  # noqa: ARG002
        indices: int | Sequence[int] | None = None,  # noqa: ARG002
        norm: bool = False,  # noqa: ARG002
        intermediates_only: bool = False,  # noqa: ARG002
        output_fmt: Format = "NCHW",  # noqa: ARG002
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The features listed in ``feature_info`` at ``indices`` (None: all, an int: the last so many).

        Returns (``forward_features(x)``, intermediates), or the intermediates alone. ``norm`` puts the final norm on
        those it fits. Raises UserError for an index out of range, and where a model has none.
        """
        raise UserError(f"{self.called} gives no intermediate features")

    @abstractmethod
    def get_classifier(self) -> nn.Module:
        """The classifier: pooled vector (b, c) -> logits (b, k)."""

    @abstractmethod
    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh classifier; ``global_pool`` may only name the pooling the family has. Raises UserError."""

    def init_weights(self) -> None:
        """Draws every parameter and resets every buffer anew, as the paper's code does; here as PyTorch's layers do."""
        for module in self.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()

    def become_bottom_up(self, stages: Sequence[int], style: Style) -> None:  # noqa: ARG002
        """Lose what a pyramid of the four ``stages`` (from 1) does not use, and gain the norms of its outputs.

        Here: the classifier goes, and the outputs have no norms.
        """
        self.reset_classifier(0)

    def stage_maps(self, x: Float[Tensor, "b k h w"], indices: Sequence[int]) -> list[Tensor]:
        """The maps (b, c, h, w) of a pyramid at ``indices`` of ``feature_info``, with the norms of its outputs."""
        maps = self.forward_intermediates(x, indices=list(indices), intermediates_only=True)
        assert isinstance(maps, list)
        return maps

    def fix_size(self, height: int, width: int) -> None:
        """Store the tables that depend on the size for this one, in place, before the model is deployed at it alone."""


def timm_cfg(
    num_classes: int,
    input_size: tuple[int, int, int],
    crop_pct: float,
    first_conv: str,
    classifier: str | tuple[str, ...] = "head",
) -> dict[str, Any]:
    """A ``pretrained_cfg`` with what all families share: bicubic, ImageNet's mean and deviation, any input size.

    ``input_size`` is (channels, height, width) in pixels, ``crop_pct`` the share of the short side that the official
    evaluation keeps, ``classifier`` every top-level name that depends on the number of classes.
    """
    return {
        "num_classes": num_classes,
        "input_size": input_size,
        "fixed_input_size": False,
        "interpolation": "bicubic",
        "crop_pct": crop_pct,
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "first_conv": first_conv,
        "classifier": classifier,
    }


def take_indices(count: int, indices: int | Sequence[int] | None) -> list[int]:
    """Which of ``count`` features: None is all, an int the last so many, a list is itself with negatives from the end.

    ``take_indices(12, 4) == [8, 9, 10, 11]``. Raises UserError for an index out of range.
    """
    if indices is None:
        return list(range(count))
    if isinstance(indices, int):
        if not 0 < indices <= count:
            raise UserError(f"the last {indices} features were asked for, but there are {count}")
        return list(range(count - indices, count))
    wrong = [i for i in indices if not -count <= i < count]
    if wrong:
        raise UserError(f"feature index {wrong[0]} is out of range: there are {count} features")
    return [i % count for i in indices]


def count_classes(classifier: str | Sequence[str], state: Mapping[str, Tensor]) -> int:
    """The classes of a state dict; 0 where it has no head. ``classifier``: as in ``pretrained_cfg``, the first counts.

    A head is one layer, whose weight has a row per class, or a list of layers, one per class.
    """
    name = classifier if isinstance(classifier, str) else classifier[0]
    pattern = re.compile(re.escape(name) + r"\.(\d+\.)?weight")
    return sum(tensor.shape[0] for key, tensor in state.items() if pattern.fullmatch(key) and tensor.ndim > 1)


def check_pool(asked: str | None, own: str, family: str) -> None:
    """Raises UserError unless ``asked`` is None or the family's own pooling."""
    if asked not in (None, own):
        raise UserError(f"{family} has one pooling, global_pool={own!r}; {asked!r} is not available")


def is_table(tensor: Tensor | None) -> TypeGuard[Tensor]:
    """Whether a file's tensor is a position table, (1, n, c), that can be carried; else shapes tell what is wrong."""
    return (
        tensor is not None
        and tensor.ndim == 3
        and tensor.shape[0] == 1
        and tensor.numel() > 0
        and tensor.is_floating_point()
    )
