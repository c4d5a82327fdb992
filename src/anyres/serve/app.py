"""The app: ``POST /predict``, the open inference protocol, probes, metrics and the page, for one model."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib import resources
from importlib.metadata import version
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import JSONResponse, Response

from anyres.serve import open_inference
from anyres.serve.body import image_in
from anyres.serve.errors import Refused, plain
from anyres.serve.guard import Guard, check_token
from anyres.serve.looking import Looked
from anyres.serve.model import ServedModel
from anyres.serve.schema import About, Answered, Wrong, about, answered
from anyres.serve.service import Service

log = logging.getLogger(__name__)
MOST_DEADLINE_MS = 60_000.0
SIZE = "[1-9][0-9]{0,4}(x[1-9][0-9]{0,4})?"
PAGE = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/model.js": ("server.js", "text/javascript; charset=utf-8"),
    "/from_files.js": ("from_files.js", "text/javascript; charset=utf-8"),
}
"""Address -> file of the page and its type."""
WRONG: dict[int | str, dict[str, Any]] = {
    400: {"model": Wrong, "description": "The request is not as it should be."},
    401: {"model": Wrong, "description": "The token is missing or wrong."},
    408: {"model": Wrong, "description": "The body came too slowly."},
    413: {"model": Wrong, "description": "Too many bytes or pixels."},
    415: {"model": Wrong, "description": "A type of body that is not read."},
    422: {"model": Wrong, "description": "No image, or an option that is none."},
    503: {"model": Wrong, "description": "Too much is asked; Retry-After says when to come again."},
    504: {"model": Wrong, "description": "The deadline passed before its turn came."},
}
BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "properties": {"image": {"type": "string", "format": "binary"}},
                }
            },
            **{kind: {"schema": {"type": "string", "format": "binary"}} for kind in ("image/jpeg", "image/png")},
        },
    }
}


def make_app(model: ServedModel) -> FastAPI:
    """The app for one model; ``app.state.service`` is its Service."""
    service = Service(model)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.scheduler:
            yield

    app = FastAPI(
        title="anyres",
        description="One vision model, at the size that the request, its deadline or the load calls for.",
        version=version("anyres"),
        lifespan=lifespan,
        docs_url=None,  # their scripts come from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(service.options.hosts), www_redirect=False)
    app.add_middleware(Guard, is_draining=lambda: service.draining)
    _add_errors(app)
    _add_predict(app, service)
    _add_probes(app, service)
    open_inference.add_routes(app, service)
    _add_page(app)
    return app


def _add_errors(app: FastAPI) -> None:
    """Every error in one form."""

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> JSONResponse:
        return error.response()

    @app.exception_handler(HTTPException)
    async def of_framework(_: Request, error: HTTPException) -> JSONResponse:
        return plain(error.status_code, str(error.detail), error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return plain(422, f"{'.'.join(map(str, first['loc']))}: {first['msg']}")

    @app.exception_handler(Exception)
    async def fault(_: Request, error: Exception) -> JSONResponse:
        log.error("a fault of anyres: %s", type(error).__name__, exc_info=error)
        return plain(500, "a fault of anyres: the server's log has its traceback")


def _add_predict(app: FastAPI, service: Service) -> None:
    @app.post("/predict", responses=WRONG, openapi_extra=BODY, summary="What an image shows")
    async def predict(
        request: Request,
        size: Annotated[
            str,
            Query(
                description="auto (the server chooses), cascade, or a size such as 224 or 320x192 (height x width)",
                pattern=f"^(auto|cascade|{SIZE})$",
            ),
        ] = "auto",
        deadline_ms: Annotated[
            float | None,
            Query(description="Milliseconds from now, in which an answer is of use.", ge=1, le=MOST_DEADLINE_MS),
        ] = None,
        top: Annotated[int, Query(description="So many of the likeliest classes.", ge=1, le=1000)] = 5,
    ) -> Answered:
        """Send the image as a form's file `image`, or as the body itself."""

        async def answer(arrived: float) -> Answered:
            wish = service.wish(size, deadline_ms)
            content = image_in(request, await service.bodies.read(request))
            work = service.scheduler.answer([content], wish, arrived)
            (outcome,) = await service.unless_gone(request, work)
            total_ms = 1000 * (service.scheduler.clock() - arrived)
            return answered(service.model, outcome, top, total_ms, deadline_ms)

        return await service.answering(request, answer)

    @app.post("/map", responses=WRONG, openapi_extra=BODY, summary="Where the model looks in an image")
    async def look(
        request: Request,
        size: Annotated[
            str, Query(description="auto (the best size), or one such as 224 or 320x192", pattern=f"^(auto|{SIZE})$")
        ] = "auto",
    ) -> Looked:
        """Send the image as to `/predict`. Maps are made one at a time, and only while no image waits for an answer:
        else 503."""

        async def answer(_: float) -> Looked:
            wish = service.wish(size, None)
            content = image_in(request, await service.bodies.read(request))
            return await service.unless_gone(request, service.looking.answer(content, wish.size))

        return await service.answering(request, answer)

    @app.get("/about", responses={401: WRONG[401]}, summary="What is served here")
    async def tell(request: Request) -> About:
        check_token(request, service.options.token)
        costs = service.dispatcher.costs
        return about(service.model, lambda size: costs.batch_ms(size, 1), service.looking.method, service.monitor)


def _add_probes(app: FastAPI, service: Service) -> None:
    @app.get("/metrics", responses={401: WRONG[401]}, summary="Numbers for Prometheus", response_class=Response)
    async def metrics(request: Request) -> Response:
        check_token(request, service.options.token)
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/healthz", summary="Whether the process is alive")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @app.get("/readyz", summary="Whether a request would be taken", responses={503: {"model": dict[str, bool]}})
    async def ready() -> JSONResponse:
        return JSONResponse({"ready": service.is_ready}, 200 if service.is_ready else 503)


def _add_page(app: FastAPI) -> None:
    folder = resources.files("anyres.deploy").joinpath("page")
    for path, (name, kind) in PAGE.items():
        app.add_api_route(path, _static(folder.joinpath(name).read_bytes(), kind), include_in_schema=False)


def _static(content: bytes, kind: str) -> Callable[[], Awaitable[Response]]:
    async def send() -> Response:
        return Response(content, media_type=kind)

    return send
