"""A dataset format of your own: ``.npz`` files with the arrays train_images, train_labels, val_images, ... (MedMNIST).

    python examples/new_dataset.py train restv2_nano --data digits.npz --out runs/digits
    python examples/new_dataset.py curve runs/digits --sizes 32:64:16

Images are uint8 (n, h, w) or (n, h, w, 3), labels whole numbers (n,) or (n, 1).
"""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

import anyres
from anyres.data.raw_dataset import Found, Item, number_order


@anyres.register_reader(".npz")
def read_npz(paths: Sequence[Path]) -> Found:
    parts: dict[str, list[Item]] = {}
    for path in paths:
        arrays = np.load(path)
        for split in ("train", "val", "test"):
            if f"{split}_images" not in arrays:
                continue
            images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"].reshape(-1)
            if len(images) != len(labels):
                raise anyres.UserError(f"{path}: {len(images)} {split}_images and {len(labels)} {split}_labels")
            parts.setdefault(split, []).extend(
                Item(f"{path.name}/{split}/{i}", (str(label),), png(image))  # a name that stays, labels, an image file
                for i, (image, label) in enumerate(zip(images, labels, strict=True))
            )
    if "train" not in parts:
        raise anyres.UserError(f"{paths[0]} has no array train_images")
    return Found(parts, order=number_order(item for items in parts.values() for item in items))


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


if __name__ == "__main__":
    from anyres.cli import main

    main()
