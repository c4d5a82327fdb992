"""The image files that a user means by files, folders and patterns."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Sequence
from pathlib import Path

from anyres.config import UserError, printable
from anyres.data.folders import walk
from anyres.data.raw_dataset import ENDINGS
from anyres.storage import as_path, exists


def wanted_files(words: Iterable[str | Path]) -> tuple[list[Path], list[str]]:
    """The files that are meant, each once, in the order of the words; and notes on what was left out.

    A folder stands for the images at any depth below it, by name; a pattern (``photos/*.jpg``, ``photos/**/*.png``) for
    the files that match it. Any other word is a file, whether it is there or not. Raises UserError, in one line, for a
    folder or a pattern without an image.
    """
    found: dict[Path, None] = {}
    notes: list[str] = []
    for word in words:
        path = as_path(word)
        if path.is_dir():
            some = _below(path, notes)
            _check(some, f"{path} has no image at any depth: give a folder with images, or their files")
        elif glob.has_magic(str(path)) and not exists(path):
            some = _matching(str(path), notes)
            _check(some, f"no file matches {word}: correct the pattern (** stands for folders at any depth)")
        else:
            some = [path]
        found.update(dict.fromkeys(some))
    return list(found), notes


def _below(folder: Path, notes: list[str]) -> list[Path]:
    """The images at any depth below a folder."""
    walked = walk(folder)
    notes += walked.notes()
    return walked.images


def _matching(pattern: str, notes: list[str]) -> list[Path]:
    """The files that match, without those that have no image's ending where others have one; the images below the
    folders that match, where no file does."""
    matches = sorted(map(Path, glob.iglob(pattern, recursive=True)))  # noqa: PTH207
    files = [path for path in matches if path.is_file()]
    if not files:
        return [image for folder in matches if folder.is_dir() for image in _below(folder, notes)]
    images = [path for path in files if path.suffix.lower() in ENDINGS]
    if images and len(images) < len(files):
        notes.append(f"{pattern}: {len(files) - len(images)} files without an image ending: left out")
    return images or files


def _check(some: Sequence[Path], otherwise: str) -> None:
    if not some:
        raise UserError(printable(otherwise))
