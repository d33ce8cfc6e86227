"""A real server in a thread of this process, on a port that the system chooses."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from glmcore.engine.engine import Engine
from glmcore.engine.service import EngineService
from glmcore.model.config import GlmConfig
from glmcore.model.glm import Glm
from glmcore.serve.app import create_app
from glmcore.serve.config import ServeConfig
from glmcore.serve.conversations import Conversations, TurnLimits
from glmcore.serve.run import Server
from glmcore.serve.security import ApiKeys
from glmcore.tokenizer import Tokenizer

NO_KEYS = ApiKeys([])
ON_ANY_PORT = {"listen": {"port": 0, "shutdown_s": 1.0}, "model": {"num_threads": 1}}


def settings(**sections) -> ServeConfig:
    """A configuration for a test: any free port, one thread."""
    merged = {**ON_ANY_PORT, **sections, "listen": {**ON_ANY_PORT["listen"], **sections.get("listen", {})}}
    return ServeConfig.from_dict(merged, "test")


@contextmanager
def running(app, config: ServeConfig) -> Iterator[Server]:
    """The application behind a socket."""
    server = Server(app, config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.url:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.01)
    yield server
    server.should_exit = True
    thread.join(20)
    assert not thread.is_alive(), "the server does not stop"


def random_conversations(tokenizer: Tokenizer, config: ServeConfig, **fields) -> Conversations:
    """Over a tiny model of random weights, which nearly never ends by itself."""
    stop = tokenizer.token_to_id("<|user|>")
    sizes = {
        "vocab_size": tokenizer.vocab_size,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "max_position_embeddings": 2048,
        "eos_token_id": [stop],
        "pad_token_id": stop,
    }
    model = Glm(GlmConfig(**{**sizes, **fields})).init_weights(seed=1)
    engine = Engine(model, [stop], tokenizer=tokenizer, config=config.engine)
    context = min(model.config.max_position_embeddings, engine.cache_tokens)
    limits = TurnLimits.of(config.limits, context)
    return Conversations(EngineService(engine), tokenizer, limits, chat_format=config.chat_format)


def app_of(conversations: Conversations, config: ServeConfig, keys: ApiKeys = NO_KEYS):
    """The application, with these keys alone."""
    return create_app(conversations, config, keys)
