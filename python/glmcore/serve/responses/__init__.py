"""The Responses API of OpenAI."""

from fastapi import APIRouter

from glmcore.serve.openai.errors import error_body
from glmcore.serve.responses import responses
from glmcore.serve.turn import Conversations

__all__ = ["error_body", "routers"]


def routers(conversations: Conversations) -> list[APIRouter]:
    """All paths of the dialect."""
    return [responses.router(conversations)]
