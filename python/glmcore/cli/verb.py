"""How every verb of the command is declared."""

import argparse
from typing import Any


def add_verb(verbs: Any, name: str, summary: str, example: str) -> argparse.ArgumentParser:
    """A verb with its summary and examples in `--help`."""
    return verbs.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"examples:\n{example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
