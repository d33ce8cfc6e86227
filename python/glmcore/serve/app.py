"""The server: every dialect behind one gate."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from glmcore import __version__
from glmcore.serve import health
from glmcore.serve.anthropic import errors as anthropic_errors
from glmcore.serve.anthropic import messages
from glmcore.serve.config import ServeConfig
from glmcore.serve.conversations import Conversations
from glmcore.serve.errors import Kind, ServeError, bad_request
from glmcore.serve.gate import Gate
from glmcore.serve.openai import chat, completions, models, tokenize
from glmcore.serve.openai import errors as openai_errors
from glmcore.serve.page import router as page
from glmcore.serve.responses import responses
from glmcore.serve.security import ApiKeys, Doorkeeper, check_exposure

ROUTERS = (
    *(chat.router, completions.router, responses.router, models.router, tokenize.router),
    *(messages.router, page.router, health.router),
)
"""Each gives paths: `router(conversations, config)`."""
ERRORS: tuple[tuple[str, Callable[[ServeError], Response]], ...] = (
    ("/v1/messages", anthropic_errors.error_response),
    ("/", openai_errors.error_response),
)
"""What writes the failures of paths that begin so; the first that fits counts."""
HTTP_KINDS: dict[int, Kind] = {404: "not_found", 405: "invalid_request", 413: "too_large"}


def create_app(conversations: Conversations, config: ServeConfig, keys: ApiKeys | None = None) -> FastAPI:
    """The application.

    Args:
        conversations: Answers turns. Its service is closed when the application ends.
        config: The server's.
        keys: API keys; None for those of the configuration and the environment.

    Raises:
        ConfigError: It could be reached by others without a key.
    """
    keys = ApiKeys.load(config) if keys is None else keys
    check_exposure(config, keys)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.ready = True
        yield
        app.state.ready = False
        await conversations.service.close()

    app = FastAPI(
        title="glmcore",
        version=__version__,
        summary="OpenAI and Anthropic APIs for one model.",
        lifespan=lifespan,
        docs_url=None,  # both pages load scripts from another site
        redoc_url=None,
    )
    app.state.ready = False
    for router in ROUTERS:
        app.include_router(router(conversations, config))
    app.add_exception_handler(ServeError, _handler(lambda error: error))
    app.add_exception_handler(RequestValidationError, _handler(_invalid))
    app.add_exception_handler(HTTPException, _handler(_http_error))
    door = Doorkeeper(config, keys)
    app.add_middleware(Gate, config=config, door=door, metrics=conversations.metrics, refuse=refusal)
    return app


def refusal(path: str, error: ServeError) -> Response:
    """The answer to a request at `path` that fails, in the shape of its dialect."""
    response = next(write for prefix, write in ERRORS if path.startswith(prefix))(error)
    if error.retry_after_s is not None:
        response.headers["retry-after"] = str(max(1, round(error.retry_after_s + 0.5)))
    if response.status_code == 401:
        response.headers["www-authenticate"] = "Bearer"
    return response


def _handler(translate: Callable[[Any], ServeError]) -> Callable[[Request, Any], Any]:
    async def handle(request: Request, error: Any) -> Response:
        return refusal(request.url.path, translate(error))

    return handle


def _invalid(error: RequestValidationError) -> ServeError:
    first = error.errors()[0]
    place = _place(first["loc"][1:], error.body)
    if first["type"] == "extra_forbidden":
        return bad_request(f"this server does not support {place!r}", param=place, code="unsupported_parameter")
    if first["type"] == "json_invalid":
        return bad_request(f"the body is not valid JSON: {first['ctx']['error']}", code="invalid_json")
    message = first["msg"].removeprefix("Value error, ")
    return bad_request(f"{place}: {message}" if place else message, param=place or None)


def _place(parts: Sequence[str | int], body: Any) -> str:
    """The field that is wrong, without what pydantic adds to name the members of a union."""
    names: list[str] = []
    for number, part in enumerate(parts):
        if isinstance(body, dict) and (part in body or number == len(parts) - 1):  # the last one may be missing
            names.append(str(part))
            body = body.get(part)
        elif isinstance(body, list) and isinstance(part, int) and part < len(body):
            names.append(str(part))
            body = body[part]
    return ".".join(names)[:200]


def _http_error(error: HTTPException) -> ServeError:
    kind = HTTP_KINDS.get(error.status_code, "invalid_request")
    return ServeError(error.status_code, kind, str(error.detail))
