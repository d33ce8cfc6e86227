"""How the server is: for load balancers and Prometheus."""

from typing import Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response

from glmcore.serve.config import ServeConfig
from glmcore.serve.conversations import Conversations
from glmcore.serve.sse import json_answer


class Health(BaseModel):
    """Whether the server lives, or is ready for requests."""

    status: Literal["ok", "stopping"]


def router(conversations: Conversations, config: ServeConfig) -> APIRouter:
    """`/health` and `/metrics`."""
    del config  # every router is given it
    routes = APIRouter(tags=["Server"])

    @routes.get("/health/live", summary="Whether the process answers")
    async def live() -> Health:
        return Health(status="ok")

    @routes.get("/health", summary="Whether requests are taken on", responses={503: {"model": Health}})
    @routes.get("/health/ready", summary="Whether requests are taken on", responses={503: {"model": Health}})
    async def ready(request: Request) -> Response:
        if request.app.state.ready:
            return json_answer({"status": "ok"})
        return json_answer({"status": "stopping"}, 503)

    @routes.get("/metrics", summary="Figures for Prometheus", response_class=Response)
    async def metrics() -> Response:
        return Response(conversations.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return routes
