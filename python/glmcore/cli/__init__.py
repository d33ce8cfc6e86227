"""The `glmcore` command: parse, build the configuration, call one function."""

import argparse
import errno
import logging
import os
import sys
from typing import Any

from glmcore.cli import data, demo, eval, models, plan, reinforcement, runs, serve, tokenizer
from glmcore.errors import ConfigError, GlmcoreError, RankError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""


def main(argv: list[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0 done, 1 a glmcore error, 2 wrong usage, 130 interrupted."""
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        args.command(args)
    except RankError as error:
        return _fail(str(error)) if error.is_news else 1
    except ConfigError as error:  # processes of one machine have read the same recipe, so one of them speaks
        return _fail(str(error)) if os.environ.get("LOCAL_RANK", "0") == "0" else 1
    except GlmcoreError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        print(f"\nglmcore: interrupted; {_how_to_resume(args)}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        sys.stdout = None  # the reader has left; nothing more can be said
        return 0
    except OSError as error:
        if error.errno in DISK_FULL:
            return _fail(f"no space left to write {error.filename or 'the run'}: free some and repeat the command")
        raise
    return 0


def entry_point() -> None:
    """The console script."""
    sys.exit(main())


def _fail(message: str) -> int:
    print(f"glmcore: error: {' '.join(message.split())}", file=sys.stderr)
    return 1


def _how_to_resume(args: argparse.Namespace) -> str:
    if args.resumable:
        return "repeat the same command to go on from the last saved step"
    return "nothing was left half-written"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="glmcore",
        description="The GLM-4.6 system, tokenizer to serving.",
        epilog="Every verb has its own --help with examples.",
    )
    parser.add_argument("--version", action="store_true", help="print the version and stop")
    parser.set_defaults(command=_version_or_help(parser), resumable=False)
    verbs = parser.add_subparsers(metavar="COMMAND")
    runs.add_verbs(verbs)
    reinforcement.add_verbs(verbs)
    data.add_verbs(verbs)
    models.add_verbs(verbs)
    serve.add_verbs(verbs)
    eval.add_verbs(verbs)
    plan.add_verbs(verbs)
    tokenizer.add_verbs(verbs)
    demo.add_verbs(verbs)
    return parser


def _version_or_help(parser: argparse.ArgumentParser) -> Any:
    def command(args: argparse.Namespace) -> None:
        if not args.version:
            parser.print_help(sys.stderr)
            parser.exit(2)
        from glmcore import __version__

        print(__version__)

    return command
