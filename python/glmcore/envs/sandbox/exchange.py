"""Feeding a running program and reading what it says, within bounds of time and size."""

import contextlib
import os
import selectors
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

CHUNK = 1 << 16


@dataclass
class Exchange:
    """Streams of one process: bytes to be written to some, a bound on what is read from others.

    A stream that says more than its bound ends the exchange; `overflowed` names it.
    """

    outputs: Mapping[str, tuple[int, int]]
    """Descriptor and most bytes of each stream that is read."""
    inputs: list[tuple[int, bytes]]
    """Descriptors with what is written to them; each is closed behind it."""
    said: dict[str, bytearray] = field(default_factory=dict[str, bytearray])
    overflowed: str | None = None

    def run(self, deadline: float, until: str | None = None) -> bool:
        """Go on until all streams that are read have ended, or `until` has said a line.

        Args:
            deadline: When to stop, by `time.monotonic`.
            until: A stream of `outputs`.

        Returns:
            False when the deadline has passed first.
        """
        pending = {descriptor: memoryview(data) for descriptor, data in self.inputs}
        names = {descriptor: name for name, (descriptor, _) in self.outputs.items()}
        with selectors.DefaultSelector() as selector:
            for descriptor in pending:
                os.set_blocking(descriptor, False)
                selector.register(descriptor, selectors.EVENT_WRITE)
            for name, (descriptor, _) in self.outputs.items():
                self.said.setdefault(name, bytearray())
                os.set_blocking(descriptor, False)
                selector.register(descriptor, selectors.EVENT_READ)
            try:
                return self._exchange(selector, pending, names, deadline, until)
            finally:
                self.inputs = [(descriptor, bytes(data)) for descriptor, data in pending.items()]

    def _exchange(
        self,
        selector: selectors.BaseSelector,
        pending: dict[int, memoryview],
        names: dict[int, str],
        deadline: float,
        until: str | None,
    ) -> bool:
        while names and self.overflowed is None:
            if until is not None and b"\n" in self.said[until]:
                break
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            for key, _ in selector.select(left):
                if key.fd in pending:
                    self._write(key.fd, pending, selector)
                else:
                    self._read(key.fd, names, selector)
        return True

    def _write(self, descriptor: int, pending: dict[int, memoryview], selector: selectors.BaseSelector) -> None:
        data = pending[descriptor]
        try:
            pending[descriptor] = data[os.write(descriptor, data[:CHUNK]) :]
        except BrokenPipeError:  # a program need not read its input
            pending[descriptor] = data[len(data) :]
        except BlockingIOError:
            return
        if not pending[descriptor]:
            del pending[descriptor]
            selector.unregister(descriptor)
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def _read(self, descriptor: int, names: dict[int, str], selector: selectors.BaseSelector) -> None:
        name = names[descriptor]
        bound = self.outputs[name][1]
        try:
            data = os.read(descriptor, CHUNK)
        except BlockingIOError:
            return
        if not data:
            del names[descriptor]
            selector.unregister(descriptor)
            return
        self.said[name] += data[: bound - len(self.said[name]) + 1]
        if len(self.said[name]) > bound:
            del self.said[name][bound:]
            self.overflowed = name
