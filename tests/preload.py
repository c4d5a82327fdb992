"""What a training run imports on its way, imported once by the server that runs are forked from."""

import importlib

from PIL import Image

for name in (
    "accelerate.tracking",
    "anyres.cli.train",
    "anyres.models.timm_names",
    "anyres.runs.report",
    "anyres.runs.train",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "scipy.stats",
    "tests.runs",
    "timm.data",
    "timm.models",
    "torch.distributed.fsdp",
    "torch.utils.tensorboard",
):
    importlib.import_module(name)
Image.init()
