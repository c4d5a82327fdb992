"""How the images of a bulk prediction are answered."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from anyres.config import UserError
from anyres.flow import Size

PART = 256
"""Images of a part: so many are answered again after a kill, at most, by each worker."""


@dataclass(frozen=True)
class BulkOptions:
    """What the answers depend on, but for the model and the images."""

    sizes: tuple[Size, ...] = ()  # each image at the largest that its pixels fill; (): the largest trained at
    backend: str | None = None  # an engine, as `anyres.Predictor` takes it; None: PyTorch as it is
    cascade: bool = False  # through the cascade that was chosen for the run
    tile: int | None = None  # side in pixels of the overlapping parts that an image is answered in
    top: int = 3  # of the likeliest classes, for JSON lines
    threshold: float | None = None  # of several labels or objects: every one above it; None: the task's own
    batch: int = 32  # images of one size at a time
    huge_pages: bool = False  # move a worker's memory into huge pages (Linux); changes no answer

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise UserError(f"--batch {self.batch} must be 1 or more")
        if len(self.sizes) > 1 and (self.cascade or self.tile):
            raise UserError("several sizes are chosen from by an image's own: leave out --cascade and --tile")

    def plain(self) -> dict[str, Any]:
        """What changes answers, as JSON has it, to be compared."""
        values = {**asdict(self), "sizes": [str(size) for size in self.sizes]}
        del values["huge_pages"]
        return values


@dataclass(frozen=True)
class Engine:
    """Where the work is done."""

    name: str = "local"  # local: this process; ray: a Ray cluster
    address: str | None = None  # of the cluster; None: one is started on this machine
    workers: int | None = None  # of the cluster, at most; None: as many as fit

    def __post_init__(self) -> None:
        if self.name not in ("local", "ray"):
            raise UserError(f"--engine {self.name} is neither local nor ray")
        if self.name != "ray" and (self.address or self.workers):
            raise UserError("--address and --workers are of a Ray cluster: add --engine ray")
