"""One class for each clip of a film: top-1 accuracy, by an image model that attends over time too."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, get_type_hints

from torch import nn

from anyres.config import UserError, override
from anyres.data.sources import Source, Wanted
from anyres.models.contract import Backbone
from anyres.models.video import VideoConfig, VideoModel
from anyres.storage import check_types
from anyres.tasks.classify import Classify
from anyres.tasks.task import Configs
from anyres.training.objectives import ObjectiveConfig


@dataclass(frozen=True)
class Video(Classify):
    """One class for each clip; ``head`` in a recipe is the model's ``VideoConfig``, ``clip`` says what a clip is.

    A clip is classified as an image is, so all but the network is taken over from there.
    """

    name: ClassVar[str] = "video"
    wanted: ClassVar[Wanted] = "clips"

    def settle(self, configs: Configs) -> ObjectiveConfig:
        """The objective with the loss of classes. Raises UserError for what has no meaning for clips."""
        given = super().settle(configs)
        if given.chosen not in ("supervised", "cosub") or given.distillation.kind != "none":
            raise UserError(
                "task=video learns from labels alone: leave out objective.dino, objective.name and "
                "objective.distillation"
            )
        video_config(configs.head)
        return given

    def build(self, backbone: Callable[[int], nn.Module], head: Mapping[str, Any]) -> nn.Module:
        """The recipe's backbone with attention over time."""
        image = backbone(self.outputs)
        assert isinstance(image, Backbone)
        return VideoModel(image, video_config(head))

    def describe(self, source: Source) -> Iterable[str]:
        """How many clips each class has."""
        counts = [sum(record.target == i for record in source.records) for i in range(len(self.classes))]
        yield f"{min(counts)} to {max(counts)} clips of each class"


def video_config(head: Mapping[str, Any]) -> VideoConfig:
    """A recipe's ``head`` as the model's configuration. Raises UserError for an unknown option or a wrong value."""
    try:
        check_types(head, get_type_hints(VideoConfig))
    except ValueError as error:
        raise UserError(f"head.{error}") from None
    return override(VideoConfig(), head, "head")
