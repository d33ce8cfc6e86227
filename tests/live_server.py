"""A checkpoint served over a real socket."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serving import running, settings

from glmcore.serve.run import load_app


@contextmanager
def serving(directory: Path, **sections: object) -> Iterator[str]:
    """The address of a server of this checkpoint, which is called `glm`; it stops at the end of the block."""
    config = settings(model_name="glm", **sections)
    with running(load_app(directory, config), config) as server:
        yield server.url
