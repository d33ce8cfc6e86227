"""The Messages API of Anthropic."""

from fastapi import APIRouter

from glmcore.serve.anthropic import messages
from glmcore.serve.anthropic.errors import error_body
from glmcore.serve.turn import Conversations

__all__ = ["error_body", "routers"]


def routers(conversations: Conversations) -> list[APIRouter]:
    """All paths of the dialect."""
    return [messages.router(conversations)]
