"""The server's routes: the page, images, predictions and pictures of their planes.

What a person does wrong is answered by ``{"error": message}`` with the status of `RequestError`, or 400 for an error of
a reader or a prediction.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from collections.abc import AsyncIterator, Callable
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs

import anyio.to_thread
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from repmode_cl.data.preprocessing.recipe import PreprocessingRecipe
from repmode_cl.data.readers import open_image
from repmode_cl.data.voxel_size_check import check_voxel_size, trained_voxels
from repmode_cl.errors import RepmodeError
from repmode_cl.inference.display_colours import colour_of
from repmode_cl.inference.options import PredictionOptions
from repmode_cl.report.html import page_part
from repmode_cl.serve.access import Access
from repmode_cl.serve.images import ImageStore, StoredImage, describe_image, open_stored, without_folder
from repmode_cl.serve.jobs import Job, JobQueue, JobState, job_prediction
from repmode_cl.serve.models import ServedModels
from repmode_cl.serve.planes import LIGHT_PERCENTILES, PREDICTION_PERCENTILES, display_limits, plane_png
from repmode_cl.serve.settings import RequestError, ServeSettings
from repmode_cl.store.snapshot import ModelSnapshot
from repmode_cl.utils.memory import format_bytes
from repmode_cl.version import __version__

__all__ = ["make_app"]

T = TypeVar("T")

# Most bytes of a request other than an image, and readings of images at once.
_MOST_BODY, _READERS = 64 << 10, 3
# Seconds between two looks for images to delete.
_SWEEP_SECONDS = 5.0

_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


def make_app(settings: ServeSettings, models: ServedModels, folder: Path) -> Starlette:
    """Return the server as an ASGI application.

    Parameters
    ----------
    settings
        Of the server.
    models
        The models that it offers.
    folder
        An empty folder of this process for images and results; whoever made it removes it.
    """
    return _Server(settings, models, folder).app


class _Server:
    def __init__(self, settings: ServeSettings, models: ServedModels, folder: Path) -> None:
        self.settings, self.models = settings, models
        self.store = ImageStore(folder, settings)
        self.queue = JobQueue(self.store, models.networks, settings.max_waiting)
        # Made where an event loop runs.
        self.readers: anyio.CapacityLimiter | None = None
        self.access: Access | None = None
        routes = [
            Route("/", self.page),
            Route("/sign-in", self.sign_in_page),
            Route("/sign-in", self.sign_in, methods=["POST"]),
            Route("/static/{name}", self.static),
            Route("/api/models", self.list_models),
            Route("/api/images", self.receive_image, methods=["POST"]),
            Route("/api/sample", self.make_sample, methods=["POST"]),
            Route("/api/images/{image}", self.show_image),
            Route("/api/images/{image}", self.delete_image, methods=["DELETE"]),
            Route("/api/images/{image}/plane", self.show_plane),
            Route("/api/jobs", self.predict, methods=["POST"]),
            Route("/api/jobs/{job}", self.show_job),
            Route("/api/jobs/{job}", self.cancel_job, methods=["DELETE"]),
            Route("/api/jobs/{job}/plane", self.show_predicted_plane),
            Route("/api/jobs/{job}/result", self.download),
        ]
        self.app = Starlette(
            routes=routes,
            middleware=[Middleware(self._with_access)],
            exception_handlers={
                RepmodeError: _refused,
                ClientDisconnect: _gone,
                404: _unknown,
                405: _unknown,
            },
            lifespan=self.lifespan,
        )

    def _with_access(self, app: Any) -> Access:
        self.access = Access(app, self.settings)
        return self.access

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Work on predictions, and delete what nobody uses, while the server runs."""
        self.readers = anyio.CapacityLimiter(_READERS)
        self.queue.start()
        sweeping = asyncio.create_task(self._sweep())
        try:
            yield
        finally:
            sweeping.cancel()
            await asyncio.to_thread(self.queue.stop)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            self.delete_expired()

    def delete_expired(self) -> None:
        """Delete the images that nobody used for long, but none that waits for its prediction."""
        for image in self.store.expired():
            if not self.queue.is_waiting_for(image):
                self._delete(image)

    def _delete(self, image: StoredImage) -> None:
        self.queue.forget(image)
        self.store.delete(image)

    async def _in_thread(self, function: Callable[[], T]) -> T:
        """Return the value of a function that reads files, of which few are at work at once."""
        return await anyio.to_thread.run_sync(function, limiter=self.readers)

    # -- pages ------------------------------------------------------------------------------------------------

    async def page(self, request: Request) -> Response:
        """Answer with the page."""
        return HTMLResponse(_text("page.html").replace("{{ version }}", __version__))

    async def sign_in_page(self, request: Request) -> Response:
        """Answer with the form that asks for the token."""
        wrong = '<p class="note bad" role="alert">That is not the token of this server.</p>'
        page = _text("sign_in.html").replace(
            "{{ wrong }}", wrong if request.query_params.get("wrong") else ""
        )
        return HTMLResponse(page)

    async def sign_in(self, request: Request) -> Response:
        """Sign a visitor in who knows the token."""
        assert self.access is not None
        form = parse_qs((await _body(request)).decode("utf-8", "replace"))
        signed_in = self.access.signed_in(form.get("token", [""])[0].strip())
        return signed_in or Response(status_code=303, headers={"location": "/sign-in?wrong=1"})

    async def static(self, request: Request) -> Response:
        """Answer with a file of the page."""
        name = request.path_params["name"]
        if name == "report.css":
            return Response(str(page_part("page/static/page.css")), media_type="text/css")
        if name not in ("serve.css", "serve.js", "icon.svg"):
            raise RequestError(404, "there is no such file")
        return Response(_text(name), media_type=_TYPES[Path(name).suffix])

    # -- images -----------------------------------------------------------------------------------------------

    async def list_models(self, request: Request) -> Response:
        """Answer with the models and the server's bounds."""
        settings = self.settings
        return JSONResponse(
            {
                "models": [one.describe() for one in self.models.models],
                "max_upload": settings.max_upload,
                "max_upload_text": format_bytes(settings.max_upload),
                "max_voxels": settings.max_voxels,
                "keep_minutes": settings.keep_seconds / 60,
                "keep_downloaded_minutes": min(settings.keep_downloaded_seconds, settings.keep_seconds) / 60,
            }
        )

    async def receive_image(self, request: Request) -> Response:
        """Receive an image: the body is the file, the query its name."""
        name = request.query_params.get("name", "image")[:500]
        declared = request.headers.get("content-length")
        image = await self.store.receive(
            name, int(declared) if declared and declared.isdecimal() else None, _chunks(request)
        )
        return await self._described(image)

    async def make_sample(self, request: Request) -> Response:
        """Make a simulated image for a model."""
        model = self.models.find(str((await _json(request)).get("model", "")))
        voxel_size = model.model.voxel_size
        image = await self._in_thread(lambda: self.store.make_sample(voxel_size))
        return await self._described(image)

    async def _described(self, image: StoredImage) -> Response:
        """Answer with what a new image is; one that cannot be used is deleted at once."""
        try:
            facts = await self._in_thread(partial(self._facts, image, None))
        except BaseException:
            self._delete(image)
            raise
        return JSONResponse({"id": image.identifier, "name": image.name, "bytes": image.bytes, **facts}, 201)

    def _facts(self, image: StoredImage, scene: int | None) -> dict[str, Any]:
        with self.store.using(image), open_stored(image, scene) as reader:
            # Of several scenes the one that is chosen counts.
            if scene is not None or len(reader.scenes) == 1:
                self.store.check_voxels(image.name, reader.shape)
            return describe_image(reader)

    async def show_image(self, request: Request) -> Response:
        """Answer with what an image is: sizes, channels, voxel size of one scene."""
        image = self.store.find(request.path_params["image"])
        return JSONResponse(await self._in_thread(partial(self._facts, image, _number(request, "scene"))))

    async def delete_image(self, request: Request) -> Response:
        """Delete an image and all that belongs to it."""
        self._delete(self.store.find(request.path_params["image"]))
        return Response(status_code=204)

    async def show_plane(self, request: Request) -> Response:
        """Answer with a picture of a plane of an image."""
        image = self.store.find(request.path_params["image"])
        channel, z = _number(request, "channel") or 0, _number(request, "z") or 0
        scene, t = _number(request, "scene"), _number(request, "t")

        def picture() -> bytes:
            with self.store.using(image), open_stored(image, scene, t) as reader:
                self.store.check_voxels(image.name, reader.shape)
                try:
                    key = ("image", scene, t, channel)
                    if key not in image.limits:
                        image.limits[key] = display_limits(reader, channel, LIGHT_PERCENTILES, t)
                    return plane_png(reader, channel, z, image.limits[key], t=t)
                except RepmodeError as error:
                    raise RepmodeError(without_folder(str(error), image)) from error

        return Response(await self._in_thread(picture), media_type="image/png")

    # -- predictions ------------------------------------------------------------------------------------------

    async def predict(self, request: Request) -> Response:
        """Check a request to predict, and put it into the queue."""
        wanted = await _json(request)
        image = self.store.find(str(wanted.get("image", "")))
        job = await self._in_thread(partial(self._checked_job, image, wanted))
        if image.deleted:
            raise RequestError(404, "this image was deleted")
        self.queue.submit(job)
        return JSONResponse(self.queue.describe(job), 201)

    def _checked_job(self, image: StoredImage, wanted: dict[str, Any]) -> Job:
        """Return a prediction that was found to be possible, as far as headers tell."""
        served = self.models.find(str(wanted.get("model", "")))
        names = wanted.get("structures")
        if not isinstance(names, list) or not names:
            raise RequestError(400, "choose at least one structure")
        structures = tuple(str(name) for name in names)
        for name in structures:
            if name not in served.model.structures:
                raise RequestError(
                    400,
                    f"the model {served.name} has no structure {name!r}: it has {', '.join(served.model.structures)}",
                )
        scene, t = (_whole(wanted.get(key), key) for key in ("scene", "t"))
        force = wanted.get("force") is True
        stated = wanted.get("voxel_size")
        options = PredictionOptions(
            channel=_whole(wanted.get("channel"), "channel"),
            scene=scene,
            t=t,
            device=self.settings.device,
            voxel_size=None if stated is None else _voxel_size(stated),
            force=force,
            confidence=wanted.get("confidence") is True,
            unlike_map=wanted.get("unlike_map") is True,
        )
        for name in structures:
            about = served.model.entries[name].reliability
            for key, records in (("confidence", "calibration"), ("unlike_map", "features")):
                if getattr(options, key) and getattr(about, records, None) is None:
                    raise RequestError(
                        400,
                        f"the model {served.name} has no {records} of {name}, which {key} needs; leave that out",
                    )
        with self.store.using(image):
            with open_stored(image, scene, t) as reader:
                self.store.check_voxels(image.name, reader.shape)
                voxel_size = options.voxel_size or reader.voxel_size
                notes = _voxel_notes(served.model, structures, voxel_size, image, force)
                shape = reader.shape
            job = Job(image, served.model, structures, options, notes)
            try:
                job_prediction(job).check()
            except RepmodeError as error:
                raise RepmodeError(without_folder(str(error), image)) from error
            # The result has the file's grid, and what is computed on the way the model's: the larger one counts.
            recipe = PreprocessingRecipe.from_json(served.model.preprocessing)
            grid = recipe.grid(shape, voxel_size, served.model.voxel_size)
            # With what the file is written with, and what waits on the way.
            channels = 1 + len(structures) * (1 + options.confidence + options.unlike_map)
            job.result_bytes = max(math.prod(shape), math.prod(grid)) * 4 * channels * 5 // 3
            return job

    async def show_job(self, request: Request) -> Response:
        """Answer with the state of a prediction; whoever waits for it keeps its image."""
        job = self.queue.find(request.path_params["job"])
        self.store.find(job.image.identifier)
        return JSONResponse(self.queue.describe(job))

    async def cancel_job(self, request: Request) -> Response:
        """Cancel a prediction."""
        job = self.queue.find(request.path_params["job"])
        self.queue.cancel(job)
        return JSONResponse(self.queue.describe(job))

    async def show_predicted_plane(self, request: Request) -> Response:
        """Answer with a picture of a plane of a result; channel 0 is the transmitted light."""
        job, path = self._finished(request)
        channel, z = _number(request, "channel") or 0, _number(request, "z") or 0
        image = job.image

        def picture() -> bytes:
            with self.store.using(image), open_image(path) as reader:
                key = (job.identifier, channel)
                if key not in image.limits:
                    percentiles = PREDICTION_PERCENTILES if channel else LIGHT_PERCENTILES
                    image.limits[key] = display_limits(reader, channel, percentiles)
                is_structure = 0 < channel <= len(job.structures)
                colour = colour_of(job.structures[channel - 1]) if is_structure else None
                return plane_png(reader, channel, z, image.limits[key], colour)

        last = len(job.structures) + len(job.further_channels)
        if not 0 <= channel <= last:
            raise RequestError(400, f"there is no channel {channel}; there are 0 to {last}")
        return Response(await self._in_thread(picture), media_type="image/png")

    async def download(self, request: Request) -> Response:
        """Send a result; once it is sent, its image is kept for a shorter time."""
        job, path = self._finished(request)
        image = job.image
        stack = contextlib.ExitStack()
        stack.enter_context(self.store.using(image))

        def sent() -> None:
            image.downloaded = True
            stack.close()

        return _Download(
            path, filename=path.name, media_type="image/tiff", background=BackgroundTask(sent), release=stack
        )

    def _finished(self, request: Request) -> tuple[Job, Path]:
        job = self.queue.find(request.path_params["job"])
        self.store.find(job.image.identifier)
        if job.state is not JobState.finished or job.result is None:
            raise RequestError(409, f"this prediction is {job.state.value}, and has no result")
        return job, job.result


class _Download(FileResponse):
    """A file that is released whether it arrives or not."""

    def __init__(self, *arguments: Any, release: contextlib.ExitStack, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._release = release

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._release.close()


def _voxel_notes(
    model: ModelSnapshot,
    structures: tuple[str, ...],
    voxel_size: tuple[float, float, float] | None,
    image: StoredImage,
    force: bool,
) -> tuple[str, ...]:
    """Compare a voxel size with those of the training images; the advice is that of the page."""
    remedy = "enter the right one under “Voxel size”, or tick “Predict even if the voxel size does not fit”"
    notes = [
        check_voxel_size(
            voxel_size,
            trained_voxels(model.entries[name].provenance, model.voxel_size),
            image.name,
            force,
            remedy=remedy,
        )
        for name in structures
    ]
    return tuple(dict.fromkeys(note for note in notes if note is not None))


# -- requests -------------------------------------------------------------------------------------------------


async def _chunks(request: Request) -> AsyncIterator[bytes]:
    async for chunk in request.stream():
        if chunk:
            yield chunk


async def _body(request: Request) -> bytes:
    body = b""
    async for chunk in _chunks(request):
        body += chunk
        if len(body) > _MOST_BODY:
            raise RequestError(413, f"a request of more than {_MOST_BODY} bytes is none of this page's")
    return body


async def _json(request: Request) -> dict[str, Any]:
    body = await _body(request)
    try:
        wanted = json.loads(body or b"{}")
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"the request is no JSON ({error})") from None
    if not isinstance(wanted, dict):
        raise RequestError(400, "the request is no JSON object")
    return wanted


def _number(request: Request, name: str) -> int | None:
    text = request.query_params.get(name)
    if text is None or text == "":
        return None
    if not text.isdecimal() or len(text) > 9:
        raise RequestError(400, f"{name} {text[:20]!r}: a number from 0 is needed")
    return int(text)


def _whole(value: object, name: str) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 10**9:
        raise RequestError(400, f"{name} {str(value)[:20]!r}: a number from 0 is needed")
    return value


def _voxel_size(value: object) -> tuple[float, float, float]:
    fits = isinstance(value, list) and len(value) == 3
    if not fits or not all(isinstance(step, (int, float)) and 0 < step < 1e6 for step in value):  # type: ignore[attr-defined]
        raise RequestError(400, "voxel size: three positive numbers in µm (z, y, x) are needed")
    z, y, x = (float(step) for step in value)  # type: ignore[attr-defined]
    return z, y, x


# -- answers --------------------------------------------------------------------------------------------------


async def _refused(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, error.status if isinstance(error, RequestError) else 400)


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=400)  # nobody reads it: the visitor left


async def _unknown(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    if request.url.path.startswith("/api/"):
        return JSONResponse({"error": "there is nothing at this address"}, status)
    return PlainTextResponse("There is nothing at this address.", status)


def _text(name: str) -> str:
    return resources.files("repmode_cl.serve").joinpath(f"static/{name}").read_text(encoding="utf-8")
