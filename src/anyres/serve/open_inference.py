"""The open inference protocol, version 2 (KServe, Triton, OpenVINO's server): metadata, health, infer.

Inputs: ``image``, UINT8 [b, h, w, c] as a decoder gives it, or, beyond the protocol, BYTES [b] with encoded images
(base64 in JSON); and ``size``, INT64 [2], height and width that the model sees (left out: the server chooses).
Output: ``probabilities``, FP32 [b, classes].
"""

from __future__ import annotations

from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from fastapi import FastAPI, Request
from jaxtyping import UInt8
from starlette.responses import JSONResponse, Response
from torch import Tensor

from anyres.config import UserError, printable
from anyres.serve.dispatcher import Wish
from anyres.serve.errors import Refused
from anyres.serve.guard import check_token
from anyres.serve.scheduler import Source
from anyres.serve.schema import Wrong
from anyres.serve.service import Service
from anyres.serve.tensors import Inference, Tensors, parse, written

MOST_JSON = 8 * 10**6
"""Bytes of JSON: more of it takes the time of others; tensors may follow as bytes."""
VERSION = "1"
LENGTH = "inference-header-content-length"
ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"model": Wrong} for code in (400, 401, 404, 408, 413, 415, 422, 503, 504)
}
TENSOR = {
    "type": "object",
    "required": ["name", "shape", "datatype", "data"],
    "properties": {
        "name": {"enum": ["image", "size"]},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
        "datatype": {"enum": ["UINT8", "INT64", "BYTES"]},
        "data": {"type": "array"},
    },
}
BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["inputs"],
                    "properties": {
                        "id": {"type": "string"},
                        "inputs": {"type": "array", "items": TENSOR, "minItems": 1, "maxItems": 2},
                    },
                }
            }
        },
    }
}


def add_routes(app: FastAPI, service: Service) -> None:
    """The protocol's addresses for the model of ``service``."""
    server, name = {"name": "anyres", "version": version("anyres")}, service.model.name

    def check(model: str, number: str) -> None:
        if model != name or number != VERSION:
            known = f"{name!r}, version {VERSION}"
            raise Refused(404, "model", f"there is no model {printable(model, 80)!r}, version {number}: it is {known}")

    @app.get("/v2", summary="What this server is")
    async def about_server() -> dict[str, Any]:
        return {**server, "extensions": ["binary_tensor_data"]}

    @app.get("/v2/health/live", summary="Whether the process is alive")
    async def live() -> dict[str, bool]:
        return {"live": True}

    ready_responses: dict[int | str, dict[str, Any]] = {503: {"model": dict[str, bool]}}

    @app.get("/v2/health/ready", summary="Whether a request would be taken", responses=ready_responses)
    async def ready() -> JSONResponse:
        return _ready(service)

    @app.get("/v2/models/{model}", responses=ERRORS, summary="The model's inputs and outputs")
    @app.get("/v2/models/{model}/versions/{number}", responses=ERRORS, summary="The same, of a version")
    async def metadata(request: Request, model: str, number: str = VERSION) -> dict[str, Any]:
        check_token(request, service.options.token)
        check(model, number)
        channels, classes = service.model.channels, len(service.model.classes)
        return {
            "name": name,
            "versions": [VERSION],
            "platform": "anyres",
            "inputs": [
                {"name": "image", "datatype": "UINT8", "shape": [-1, -1, -1, channels]},
                {"name": "size", "datatype": "INT64", "shape": [2]},
            ],
            "outputs": [{"name": "probabilities", "datatype": "FP32", "shape": [-1, classes]}],
            "parameters": {"classes": list(service.model.classes)},
        }

    @app.get("/v2/models/{model}/ready", responses={**ERRORS, **ready_responses}, summary="Whether it would answer")
    @app.get("/v2/models/{model}/versions/{number}/ready", responses={**ERRORS, **ready_responses}, summary="The same")
    async def model_ready(model: str, number: str = VERSION) -> JSONResponse:
        check(model, number)
        return _ready(service)

    @app.post("/v2/models/{model}/infer", responses=ERRORS, openapi_extra=BODY, summary="Probabilities of images")
    @app.post("/v2/models/{model}/versions/{number}/infer", responses=ERRORS, openapi_extra=BODY, summary="The same")
    async def infer(request: Request, model: str, number: str = VERSION) -> Response:
        async def answer(arrived: float) -> Response:
            check(model, number)
            body = await service.bodies.read(request)
            told = request.headers.get(LENGTH)
            json_bytes = None if told is None else int(told) if told.isascii() and told.isdigit() else -1
            if (len(body) if json_bytes is None else json_bytes) > MOST_JSON:
                line = f"more than {MOST_JSON / 1e6:g} MB of JSON: send tensors as bytes behind it ({LENGTH})"
                raise Refused(413, "bytes", line)
            try:
                asked, tensors = await service.scheduler.read(partial(parse, body, json_bytes))
                sources, wish = _images(service, tensors), _wish(service, asked, tensors)
            except (ValueError, UserError) as error:
                raise Refused(400, "tensors", str(error)) from None
            outcomes = await service.unless_gone(request, service.scheduler.answer(sources, wish, arrived))
            values: dict[str, Any] = {
                **({"id": asked.id} if asked.id is not None else {}),
                "model_name": name,
                "model_version": VERSION,
                "parameters": {
                    "sizes": [str(outcome.size) for outcome in outcomes],
                    "reasons": [outcome.reason for outcome in outcomes],
                },
            }
            rows = torch.stack([outcome.probabilities for outcome in outcomes]).numpy()
            content, head = written(values, rows, _wants_bytes(asked))
            if head is None:
                return Response(content, media_type="application/json")
            return Response(content, headers={LENGTH: str(head)}, media_type="application/octet-stream")

        return await service.answering(request, answer)


def _ready(service: Service) -> JSONResponse:
    """With both words, as the protocol's text and its servers differ."""
    is_ready = service.is_ready
    return JSONResponse({"ready": is_ready, "live": True}, 200 if is_ready else 503)


def _images(service: Service, tensors: Tensors) -> list[Source]:
    """The images of a request. Raises ValueError."""
    limits, channels = service.options.limits, service.model.channels
    unknown = sorted(set(tensors) - {"image", "size"})
    if unknown or "image" not in tensors:
        raise ValueError(f"inputs are `image` and, if wanted, `size`, not {', '.join(sorted(tensors)) or 'none'}")
    images = tensors["image"]
    if not 1 <= len(images) <= limits.images:
        raise ValueError(f"{len(images)} images are given: 1 to {limits.images} at a time")
    if isinstance(images, list):
        return list(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != channels or not images.size:
        raise ValueError(f"`image` is UINT8 [b, h, w, {channels}] or BYTES [b], not {list(images.shape)}")
    if images.shape[1] * images.shape[2] > 1e6 * limits.megapixels:
        raise Refused(413, "pixels", f"an image has more than {limits.megapixels:g} megapixels")
    return [_pixels(image) for image in images]


def _pixels(image: UInt8[np.ndarray, "h w c"]) -> UInt8[Tensor, "c h w"]:
    """(h, w, c) -> (c, h, w), in memory of its own."""
    return torch.from_numpy(image.copy()).permute(2, 0, 1)


def _wish(service: Service, asked: Inference, tensors: Tensors) -> Wish:
    """The size that is asked for, by the tensor, or as ``/predict`` does by the parameters ``size`` and
    ``deadline_ms``. Raises ValueError, UserError, Refused."""
    deadline = asked.parameters.get("deadline_ms")
    if deadline is not None and not (
        isinstance(deadline, int | float) and not isinstance(deadline, bool) and 1 <= deadline <= 60_000
    ):
        raise ValueError("parameter deadline_ms is 1 to 60000")
    deadline = None if deadline is None else float(deadline)
    if "size" not in tensors:
        return service.wish(str(asked.parameters.get("size", "auto")), deadline)
    size = tensors["size"]
    if isinstance(size, list) or size.dtype != np.int64 or size.shape != (2,):
        raise ValueError("`size` is INT64 [2]: height and width")
    return service.wish("x".join(str(side) for side in size.tolist()), deadline)


def _wants_bytes(asked: Inference) -> bool:
    """Whether the output shall come as bytes. Raises Refused for an output there is not."""
    for output in asked.outputs:
        if output.name != "probabilities":
            raise Refused(400, "tensors", f"there is no output {printable(output.name, 80)!r}: it is `probabilities`")
    each = [bool(output.parameters.get("binary_data")) for output in asked.outputs]
    return any(each) or bool(asked.parameters.get("binary_data_output"))
