"""GET /v1/models."""

import time
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel

from glmcore.serve.config import ServeConfig
from glmcore.serve.conversations import Conversations
from glmcore.serve.errors import ServeError
from glmcore.serve.openai.errors import RESPONSES


class Model(BaseModel):
    """A model that the server has."""

    id: str
    object: str = "model"
    created: int
    owned_by: str = "glmcore"
    max_model_len: int
    """Tokens of prompt and answer together."""


class ModelList(BaseModel):
    """All of them."""

    object: str = "list"
    data: list[Model]


def check_model(config: ServeConfig, asked: str | None) -> str:
    """The name of the model that a request asks for, as it wrote it; the server's own without one.

    Raises:
        ServeError: There is no such model.
    """
    names = config.model_names
    if not asked:
        return names[0]
    if asked not in names and "*" not in names:
        message = f"the model {asked[:200]!r} does not exist: this server has {names[0]!r}"
        raise ServeError(404, "not_found", message, param="model", code="model_not_found")
    return asked


def router(conversations: Conversations, config: ServeConfig) -> APIRouter:
    """The paths that list models."""
    routes = APIRouter(tags=["OpenAI"])
    began = int(time.time())

    def describe(name: str) -> Model:
        return Model(id=name, created=began, max_model_len=conversations.limits.context)

    @routes.get("/v1/models", responses=RESPONSES, summary="List the models")
    async def models() -> ModelList:
        return ModelList(data=[describe(name) for name in config.model_names if name != "*"])

    @routes.get("/v1/models/{model:path}", responses=RESPONSES, summary="Describe a model")
    async def model(model: str) -> Any:
        return describe(check_model(config, model))

    return routes
