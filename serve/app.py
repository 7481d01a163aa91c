"""Serves a run's safe encoder: `serve run serve.app:build_app run=demo`. Nothing happens at import.

Arguments: `run`, `storage` (the folder or URL that runs lie in, `runs` unless given), and any setting of the
section `serve`, such as `serve.max_replicas=1`. Inputs are neither logged nor kept.
"""

import os
from typing import Any

import click
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import RedirectResponse
from ray import serve

from safeclip.artifacts import Folder, read_manifest
from safeclip.config import Config, parse_config
from safeclip.errors import UserError
from serve.body import LimitBody, read_images, read_texts
from serve.encoder import BatchedEncoder
from serve.schemas import MAX_BODY_BYTES, MAX_TEXTS_BYTES, Embeddings, Health, Images, Model, Problem, Texts

DESCRIPTION = """Embeddings of texts and pictures from a CLIP that no longer links unsafe words and unsafe pictures.

How close an embedding lies to an unsafe concept, or any other safety score made from it, is **no detector of illegal
material** and must not be used as one. Inputs are neither logged nor kept."""

TEXTS = "/v1/embeddings/text"
api = FastAPI(title="Safe-CLIP", version="1", description=DESCRIPTION)
REFUSALS: dict[int | str, dict[str, Any]] = {status: {"model": Problem} for status in (400, 408, 413, 422)}
TEXTS_BODY = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": Texts.model_json_schema()}}}
}
IMAGES_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": Images.model_json_schema()},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["images"],
                    "properties": {"images": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                }
            },
        },
    }
}


api.add_middleware(LimitBody, limit=MAX_BODY_BYTES, limits={TEXTS: MAX_TEXTS_BYTES})


def load_bound(run: Folder, config: Config, key: str) -> BatchedEncoder:
    """Loads a run's encoder, which must still be the one that the endpoint was started with.

    Raises:
        UserError: the run was trained again since, or is being trained.
    """
    _check_key(run, key)
    encoder = BatchedEncoder(run, config.serve)
    _check_key(run, key)  # its files may have changed while they were read
    return encoder


def _check_key(run: Folder, key: str) -> None:
    manifest = read_manifest(run / "encoder")
    if manifest is None or manifest["key"] != key:
        found = f"its encoder is now {manifest['key']}" if manifest else "its encoder is being trained"
        raise UserError(f"{run.url} was trained again since the endpoint served {key}: {found}; restart the endpoint")


@serve.ingress(api)
class SafeEncoder:
    """The HTTP face of one replica."""

    def __init__(self, run: Folder, config: Config, key: str):
        self.encoder = load_bound(run, config, key)
        self.config, self.key = config, key

    def check_health(self) -> None:
        """Called by Serve, which replaces the replica when this raises."""
        self.encoder.check()

    @api.get("/", include_in_schema=False)
    def root(self) -> RedirectResponse:
        """Shows who opens the address in a browser what there is."""
        return RedirectResponse("docs")

    @api.get("/healthz", response_model=Health)
    def healthz(self) -> Health:
        """Whether the encoder gives embeddings."""
        self.encoder.check()
        return Health(status="ok")

    @api.get("/v1/model", response_model=Model)
    def model(self) -> Model:
        """Which encoder answers."""
        size = self.encoder.encoder.model.visual.image_size
        return Model(
            run=self.config.run,
            base=self.config.train.base,
            objective=self.config.train.objective,
            width=self.encoder.encoder.width,
            image_size=[size, size] if isinstance(size, int) else list(size),
            key=self.key,
        )

    @api.post(TEXTS, response_model=Embeddings, responses=REFUSALS, openapi_extra=TEXTS_BODY)
    async def texts(self, request: Request) -> Embeddings:
        """Embeddings of texts."""
        embeddings = await self.encoder.embed_texts(await read_texts(request))
        return Embeddings(embeddings=embeddings.tolist(), model=self.config.run)

    @api.post("/v1/embeddings/image", response_model=Embeddings, responses=REFUSALS, openapi_extra=IMAGES_BODY)
    async def images(self, request: Request) -> Embeddings:
        """Embeddings of pictures: base64 in JSON, or files in a form, in a field named `images`."""
        images = await read_images(request)
        try:
            embeddings = await self.encoder.embed_images(images)
        except UserError as error:
            raise HTTPException(400, f"{error}; send WebP, JPEG or PNG") from None
        return Embeddings(embeddings=embeddings.tolist(), model=self.config.run)


def build_app(arguments: dict[str, str]) -> serve.Application:
    """Returns the application of one run's encoder.

    Args:
        arguments: what stands behind `serve run serve.app:build_app`, as `key=value`.

    Raises:
        click.ClickException: an unknown argument or setting, or a run without a trained encoder; `serve run` prints
            it as one line.
    """
    try:
        return _build(dict(arguments))
    except UserError as error:
        raise click.ClickException(str(error)) from error


def _build(arguments: dict[str, str]) -> serve.Application:
    name, storage = arguments.pop("run", "demo"), arguments.pop("storage", "runs")
    if wrong := [key for key in arguments if not key.startswith("serve.")]:
        raise UserError(
            f"{wrong[0]}: no such argument; there are run, storage and settings such as serve.max_replicas"
        )
    run = Folder(storage if "://" in storage else os.path.abspath(storage)) / name
    manifest = read_manifest(run / "encoder") if run.exists("config.yaml") else None
    if manifest is None:
        raise UserError(
            f"run {name!r} has no safe encoder in {storage}; make one with: python -m jobs.pipeline --run {name}"
        )
    text = run.read("config.yaml").decode()
    config = parse_config(text, f"{run.url}/config.yaml", sets=[f"{k}={v}" for k, v in arguments.items()])
    settings = config.serve
    # Both kinds of request fill their batches at once, and one more batch of each waits. Serve's default of five
    # requests a replica would never fill a batch.
    busy = 2 * settings.max_batch
    deployment = serve.deployment(
        name="SafeEncoder",
        max_ongoing_requests=2 * busy,
        max_queued_requests=8 * busy,
        autoscaling_config={
            "min_replicas": 1,
            "max_replicas": settings.max_replicas,
            "target_ongoing_requests": busy,
        },
        ray_actor_options={"num_cpus": settings.cpus, "num_gpus": settings.gpus},
        health_check_period_s=10,
        health_check_timeout_s=30,
    )(SafeEncoder)
    return deployment.bind(run, config, manifest["key"])
