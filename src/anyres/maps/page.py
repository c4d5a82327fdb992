"""The page of what a model looks at: one file that asks for nothing else, in the look of the run's report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from PIL import Image

from anyres.evaluation.report import INKS, page_templates
from anyres.maps.draw import data_url
from anyres.storage import write_text

TEMPLATE = "look.html.j2"


@dataclass(frozen=True)
class Panel:
    """A drawing with what it shows; ``alt``: the same for a reader who does not see it."""

    name: str
    image: Image.Image
    alt: str


@dataclass(frozen=True)
class PageImage:
    """One image: what was answered, and its drawings in rows."""

    name: str
    answer: str
    rows: Sequence[Sequence[Panel]]


@dataclass(frozen=True)
class LookPage:
    """``claim``: what was looked at, in a sentence; ``how``: what the maps mean; ``notes``: what went wrong."""

    title: str
    claim: str
    how: str
    images: Sequence[PageImage]
    notes: Sequence[str] = ()


def write_page(path: Path, page: LookPage) -> None:
    """Write ``page`` to ``path``."""
    own = resources.files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8")
    made = page_templates({TEMPLATE: own}).get_template(TEMPLATE)
    write_text(path, made.render(page=page, inks=INKS, address=data_url))
