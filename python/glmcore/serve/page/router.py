"""The web chat page: one file with its own style and script, under a policy that lets nothing else in."""

import base64
import hashlib
import re
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

from glmcore.serve.config import ServeConfig
from glmcore.serve.conversations import Conversations

PAGE = Path(__file__).parent / "index.html"


def router(_conversations: Conversations, _config: ServeConfig) -> APIRouter:
    """`GET /` and `HEAD /`; Claude Code sends the latter to learn whether a server is there."""
    text = PAGE.read_text(encoding="utf-8")
    headers = {
        "content-security-policy": content_security_policy(text),
        "cross-origin-opener-policy": "same-origin",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
        "cache-control": "no-cache",
    }
    routes = APIRouter()

    @routes.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(text, headers=headers)

    return routes


def content_security_policy(page: str) -> str:
    """What the browser lets the page do.

    Only its own style and script run, only this server is spoken to, no page frames it, and no text can become HTML or
    script (Trusted Types).
    """
    style = " ".join(_hashes(page, "style"))
    script = " ".join(_hashes(page, "script"))
    return "; ".join(
        (
            "default-src 'none'",
            f"style-src {style}",
            f"script-src {script}",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
        )
    )


def _hashes(page: str, tag: str) -> list[str]:
    parts = re.findall(rf"<{tag}>(.*?)</{tag}>", page, flags=re.DOTALL)
    return [f"'sha256-{base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()}'" for part in parts]
