"""``anyres.Predictor``: the fastest engine for a model of PyTorch, or for a run with its classes and preprocessing."""

from __future__ import annotations

from collections.abc import Sequence

from anyres.deploy import predictor as deployed
from anyres.deploy.predictor import Activation, Picture, Preprocessing
from anyres.flow import Size
from anyres.models.contract import Backbone
from anyres.runs.cascade import calibration as images_of
from anyres.runs.cascade import preprocessing as preprocessing_in
from anyres.runs.opened import Model, open_model


class Predictor(deployed.Predictor):
    """A trained model behind the fastest engine of this machine.

    ``anyres.Predictor("runs/mine").predict("photo.jpg")[0][0].name`` is a photograph's likeliest class.

    ``model``: a run folder, or what else `anyres.load` opens: then class names, preprocessing, activation and, for
    int8, ``calibration`` are the run's unless given. Or a model of PyTorch: then preprocessing is as its
    ``pretrained_cfg`` says, and classes have no names. It is copied, folded where its family can be, and stays
    unchanged. ``size``: a side in pixels, ``"320x192"`` (height x width) or a Size (None: the largest it was trained
    at, or 224 for a model of PyTorch). ``batch``: images at a time, at most. None: a batch of up to 32 runs one by one
    when it first comes; when it comes again soon, a program for it is built, and the faster way is kept (not with
    inductor and int8, whose programs take up to a minute: there None is 1).

    ``backend``: an engine with its precision, as ``openvino`` (fp32) or ``openvino:bf16``; or ``auto``, the fastest of
    what runs here. ``auto`` times all engines in turn (on a CPU eager, inductor, onnxruntime, OpenVINO; on a CUDA
    device eager and inductor, each with Triton kernels and without) in fp32 and bf16, rejects those whose logits differ
    from eager float32's, and caches the timings for this model's shape, size, batch and machine. ``auto:bf16``: the
    fastest in that precision. int8 needs ``calibration``, some dozens of images.

    ``any_size``: take tensors of every size; ``size`` is used for timing and for images. A size that comes again soon
    gets a compiled program of its own (``engines/compiled_cache.py``), others run in eager PyTorch; sizes that the
    model pads to the same size share one.

    ``names``: of the classes. ``activation``: softmax for one class per image, sigmoid for several. ``huge_pages``:
    move this process's memory into huge pages (Linux). CPU threads: as many as PyTorch uses (`torch.set_num_threads`),
    so `numactl` and containers are respected, and not more than a quota gives. What ``auto`` chose is logged. Threads
    may share a predictor or make some of their own: one is built at a time, and OpenVINO's takes one call after
    another. Raises UserError.
    """

    def __init__(
        self,
        model: Model | Backbone,
        backend: str = "auto",
        size: int | str | Size | None = None,
        *,
        batch: int | None = None,
        preprocessing: Preprocessing | None = None,
        names: Sequence[str] = (),
        activation: Activation | None = None,
        calibration: Sequence[Picture] = (),
        any_size: bool = False,
        huge_pages: bool = False,
    ) -> None:
        if not isinstance(model, Backbone):
            trained = open_model(model)
            model, size = trained.backbone, deployed.size_of(size or trained.recipe.views.parsed[0])
            trained.model.check_sizes([size])
            preprocessing = preprocessing or preprocessing_in(trained, size)
            names = names or trained.classes
            activation = activation or ("sigmoid" if trained.task.activation == "sigmoid" else "softmax")
            calibration = calibration or images_of(trained, backend)
        super().__init__(
            model,
            backend,
            size or 224,
            batch=batch,
            preprocessing=preprocessing,
            names=names,
            activation=activation or "softmax",
            calibration=calibration,
            any_size=any_size,
            huge_pages=huge_pages,
        )
