"""The real server on a real socket, in a thread of the test's process."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from glmcore.serve.config import ServeConfig
from glmcore.serve.run import Server, load_app


@contextmanager
def serving(directory: Path, **settings: object) -> Iterator[str]:
    """The address of a server of this checkpoint, which is called `glm`; it stops at the end of the block."""
    given = {"model_name": "glm", "listen": {"port": 0, "shutdown_s": 1.0}, **settings}
    config = ServeConfig.model_validate(given)
    ready = threading.Event()
    server = Server(load_app(directory, config), config, lambda url: ready.set())
    thread = threading.Thread(target=server.run, name="server under test")
    thread.start()
    try:
        if not ready.wait(60):
            raise TimeoutError("the server did not start")
        yield server.url
    finally:
        server.should_exit = True
        thread.join(30)
    assert not thread.is_alive()
