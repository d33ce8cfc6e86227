"""A checkpoint directory served until the process is told to stop."""

import socket
from collections.abc import Callable
from pathlib import Path

import torch
import uvicorn
from fastapi import FastAPI

from glmcore.engine.llm import LLM
from glmcore.engine.service import EngineService
from glmcore.serve.app import create_app
from glmcore.serve.config import ServeConfig
from glmcore.serve.conversations import Conversations, TurnLimits
from glmcore.serve.security import ApiKeys, check_exposure


def load_app(directory: Path, config: ServeConfig) -> FastAPI:
    """The application over a checkpoint.

    Raises:
        ConfigError: The server could be reached by others without a key, or a key is too short.
        CheckpointError: The checkpoint cannot be loaded.
    """
    keys = ApiKeys.load(config)
    check_exposure(config, keys)  # before the minutes that a large checkpoint takes
    if config.model.num_threads:
        torch.set_num_threads(config.model.num_threads)
    llm = LLM(directory, dtype=getattr(torch, config.model.dtype), config=config.engine, fp8=config.model.fp8)
    context = min(llm.engine.model.config.max_position_embeddings, llm.engine.cache_tokens)
    limits = TurnLimits.of(config.limits, context)
    service = EngineService(llm.engine)
    conversations = Conversations(service, llm.tokenizer, limits, chat_format=config.chat_format, sampling=llm.sampling)
    conversations.metrics.watch(lambda: vars(service.stats()))
    return create_app(conversations, config, keys)


class Server(uvicorn.Server):
    """uvicorn, which says where it listens once it does.

    Args:
        app: The application.
        config: The server's.
        on_start: Called with the address, such as `http://127.0.0.1:8000`.
    """

    def __init__(self, app: FastAPI, config: ServeConfig, on_start: Callable[[str], None] = lambda _: None) -> None:
        listen = config.listen
        super().__init__(
            uvicorn.Config(
                app,
                host=listen.host,
                port=listen.port,
                log_config=None,
                access_log=False,
                server_header=False,
                http="h11",  # bounds the headers of a request to 64 KiB; httptools takes any number of them
                timeout_keep_alive=listen.keep_alive_s,
                timeout_graceful_shutdown=max(1, round(listen.shutdown_s)),
            )
        )
        self._on_start = on_start
        self.url = ""
        """Where it listens, once `started`."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and tell where."""
        await super().startup(sockets)
        if not self.servers:
            return
        host, port, *_ = self.servers[0].sockets[0].getsockname()
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        self._on_start(self.url)


def serve(directory: Path, config: ServeConfig, on_start: Callable[[str], None]) -> None:
    """Serve until the process gets SIGINT or SIGTERM; requests in flight then have `listen.shutdown_s` to end.

    Args:
        directory: Checkpoint with its tokenizer.
        config: The server's.
        on_start: Called with the address once it is open.

    Raises:
        ConfigError: See `load_app`.
        CheckpointError: See `load_app`.
    """
    Server(load_app(directory, config), config, on_start).run()
