"""The verb that serves a checkpoint: serve."""

import argparse
import logging
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmcore.cli.models import find_checkpoint
from glmcore.cli.verb import add_verb
from glmcore.errors import ConfigError

if TYPE_CHECKING:
    from glmcore.serve.config import ServeConfig


def add_verbs(verbs: Any) -> None:
    """Declare it."""
    serve = add_verb(
        verbs,
        "serve",
        "answer the clients of OpenAI and Anthropic over HTTP",
        "  glmcore serve runs/nano\n"
        "  glmcore serve GLM-4.5-Air listen.port=9000 engine.max_sequences=64\n"
        "  GLMCORE_API_KEYS=$(cat key) glmcore serve runs/nano listen.host=0.0.0.0\n"
        "  glmcore serve runs/nano server.toml limits.requests_per_minute=60\n"
        "  glmcore serve runs/nano --dry-run > server.toml",
    )
    serve.add_argument("model", type=Path, help="run directory or checkpoint directory")
    serve.add_argument("settings", nargs="*", metavar="FILE.toml|KEY=VALUE", help="see --dry-run for all keys")
    serve.add_argument("--dry-run", action="store_true", help="print the resolved configuration and stop")
    serve.set_defaults(command=_serve)


def _serve(args: argparse.Namespace) -> None:
    from glmcore.serve.config import ServeConfig

    files = [Path(setting) for setting in args.settings if "=" not in setting]
    overrides = [setting for setting in args.settings if "=" in setting]
    config = ServeConfig.load(files, overrides)
    directory = find_checkpoint(args.model)
    if config.model_name is None:
        config = config.model_copy(update={"model_name": args.model.resolve().name})
    if args.dry_run:
        import tomli_w

        print(tomli_w.dumps(config.model_dump(exclude_none=True)), end="")
        return
    try:
        from glmcore.serve.run import serve
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith("glmcore"):
            raise
        raise ConfigError(f"serving needs {error.name}: pip install 'glmcore[serve]'") from None
    logging.getLogger("glmcore.serve").setLevel(logging.INFO)
    serve(directory, config, lambda url: _say_where(url, config))


def _say_where(url: str, config: "ServeConfig") -> None:
    """What to do next, for people."""
    name = config.model_names[0]
    body = f'{{"model": "{name}", "messages": [{{"role": "user", "content": "What is 3 + 4?"}}]}}'
    key = " -H 'Authorization: Bearer KEY'" if config.security.keys_file else ""
    print(
        f"{name} is served at {url}\n"
        f"  OpenAI clients:    base URL {url}/v1\n"
        f"  Anthropic clients: base URL {url}\n"
        f"  health and metrics: {url}/health {url}/metrics\n"
        f"  curl {url}/v1/chat/completions{key} -H 'Content-Type: application/json' -d {shlex.quote(body)}",
        file=sys.stderr,
    )
