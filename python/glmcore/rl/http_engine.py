"""A vLLM or SGLang server as a `PolicyEngine`: token ids in, ids and log-probabilities out, weights from the disk.

No token has a doubtful version. Before weights change, the server is told to end all requests early and hand back what
they have; when the new weights are there, requests are sent again with that behind their prompts, so that all is
computed anew. What a request had drawn when its server died is lost, and only that.
"""

import asyncio
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from glmcore.engine.request import Generation
from glmcore.engine.sampling import SamplingParams
from glmcore.errors import RequestError, ServerError, SyncError
from glmcore.fp8.weight_directory import WeightDirectory
from glmcore.rl.http_engine_dialects import Call, Dialect, Sampled, Segment
from glmcore.rl.http_engine_link import HttpEngineConfig, ServerLink
from glmcore.rl.http_engine_process import ServerProcess
from glmcore.rl.seeds import seed_of

if TYPE_CHECKING:
    from glmcore.fp8.bucket import Bucket

_POLL_S = 0.05


class HttpEngine:
    """One server. Start it before use and close it after; methods may be called by many tasks of one event loop.

    Args:
        url: Of the server.
        dialect: Its kind.
        directory: Where weights are written for the server to load. The newest version there is loaded at the start
            and after a restart.
        stop_token_ids: Tokens that end a text where the request names none.
        config: Bounds.
        process: Starts the server, and starts it again when it is dead; None for a server that others look after.
        api_key: Sent as a bearer token.

    Raises:
        ConfigError: `httpx` is not installed.
    """

    def __init__(
        self,
        url: str,
        dialect: Dialect,
        directory: WeightDirectory,
        stop_token_ids: Iterable[int],
        *,
        config: HttpEngineConfig = HttpEngineConfig(),  # noqa: B008 (frozen)
        process: ServerProcess | None = None,
        api_key: str | None = None,
    ) -> None:
        self._server = ServerLink(url, api_key)
        self.url = url
        self.dialect = dialect
        self.directory = directory
        self.stop_token_ids = tuple(stop_token_ids)
        self.config = config
        self.process = process
        self.num_restarts = 0
        self._version = max(directory.versions(), default=0)
        self._control = asyncio.Lock()
        """Held by whoever stops, loads or restarts."""
        self._open = False
        """Whether requests may be sent."""
        self._changed = asyncio.Event()
        """Set, and replaced, when those that wait to send should look again."""
        self._paused = False
        self._broken: str | None = None
        self._running: set[asyncio.Task[Mapping[str, Any]]] = set()
        self._partial: dict[int, Generation] = {}
        self._num_aborts = 0
        self._life = 0
        """Counts recoveries, so that of many requests that fail together one recovers."""
        self._watch: asyncio.Task[None] | None = None

    @property
    def policy_version(self) -> int:
        """Version of the weights that draw the next token."""
        return self._version

    async def start(self) -> None:
        """Bring the server up with the newest weights and begin to watch it.

        Raises:
            ServerError: It does not come up in time.
            SyncError: It does not load the weights.
        """
        async with self._control:
            if self.process is not None and not self.process.is_alive:
                self.process.start()
            try:
                await self._bring_up(restart=False)
                await self._go()
            except RequestError as error:
                raise ServerError(f"{self.url} has to be {self.dialect.needs}: {error}") from None
        self._watch = asyncio.create_task(self._keep_watch())

    async def close(self) -> None:
        """End all requests and, if it is ours, the server."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        self._broken = "it was closed"
        self._set_open(True)
        await self._cancel_running()
        await self._server.close()
        if self.process is not None:
            await asyncio.to_thread(self.process.stop)

    async def generate(
        self, prompt_ids: Sequence[int], params: SamplingParams, *, priority: int = 0
    ) -> list[Generation]:
        """Continue a prompt `params.n` times; see `PolicyEngine`.

        Raises:
            RequestError: The server cannot do what is asked, or not with the right log-probabilities.
            ServerError: The server is dead and cannot be brought back, or fails again and again.
        """
        sampled = Sampled.of(params, self.stop_token_ids)
        self.dialect.check(sampled)
        if not prompt_ids:
            raise RequestError("the prompt is empty")
        tasks = [
            asyncio.ensure_future(self._continue(list(prompt_ids), sampled, params.seed, choice, priority))
            for choice in range(params.n)
        ]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def update_weights(self, version: int, buckets: "Iterable[Bucket]") -> str:
        """Write the weights to the disk, then have the server load them between two tokens.

        Returns:
            `weights_checksum` of what the server has loaded, read back from the disk.

        Raises:
            SyncError: The weights did not come whole, or the server does not load them.
            ServerError: The server died of it and cannot be brought back.
        """
        checksum = await asyncio.to_thread(self.directory.update_weights, version, buckets)
        async with self._control:
            self._broken = None
            try:
                await self._replace(version)
            except (ServerError, SyncError, RequestError) as error:
                self._broken = f"version {version} could not be loaded: {error}"
                self._set_open(True)
                raise
        return checksum

    async def _replace(self, version: int) -> None:
        try:
            await self._stop()
            self._version = version
            await self._load()
        except ServerError:
            self._version = version
            await self._bring_up(restart=False)
        await self._go()

    async def pause(self) -> None:
        """Draw nothing until `resume`. Requests are kept, new ones taken.

        Raises:
            ServerError: The server cannot be reached.
        """
        async with self._control:
            if not self._paused:
                self._paused = True
                await self._stop()

    async def resume(self) -> None:
        """Go on after `pause`.

        Raises:
            ServerError: The server cannot be reached.
        """
        async with self._control:
            if self._paused:
                self._paused = False
                await self._go()

    async def abort_all(self) -> list[Generation]:
        """End all requests; gives what they have, which is also what their callers get, with the reason `abort`."""
        async with self._control:
            ended = list(self._partial.values())
            was_open = self._open
            self._num_aborts += 1
            self._set_open(False)  # also wakes those that wait, to find that they have been ended
            await self._drain(self.dialect.abort)
            while any(id(generation) in self._partial for generation in ended):
                await asyncio.sleep(0)
            self._set_open(was_open)
        return ended

    async def is_healthy(self) -> bool:
        """Whether the server says that it is well, in time."""
        try:
            await self._server.send(self.dialect.health, self.config.health_s)
        except (ServerError, RequestError):
            return False
        return True

    async def _continue(self, prompt: list[int], sampled: Sampled, seed: int, choice: int, priority: int) -> Generation:
        result = Generation()
        aborts, tries, parts = self._num_aborts, 0, 0
        with self._listed(result):
            while True:
                while not self._open and self._num_aborts == aborts:
                    await self._changed.wait()
                if self._num_aborts != aborts:
                    return result
                if self._broken is not None:
                    raise ServerError(f"{self.url} serves no more: {self._broken}")
                life, version = self._life, self._version
                # A part has draws of its own: with the seed of the first it would draw the same numbers again.
                part = seed_of(seed, choice, parts) % 2**31
                asked = sampled.rest(len(result.token_ids), part)
                call = self.dialect.generate(prompt + result.token_ids, asked, uuid.uuid4().hex, priority)
                try:
                    segment = await self._segment(call)
                except ServerError as error:
                    tries += 1
                    if tries >= self.config.max_tries:
                        raise
                    await self._recover(life, str(error))
                    continue
                if segment is None:  # cancelled on our side, to be sent again
                    continue
                if self._is_foreign(segment, version):
                    tries += 1
                    trouble = f"{self.url} drew with version {segment.version} in the place of {version}"
                    if tries >= self.config.max_tries:
                        raise ServerError(trouble)
                    await self._recover(life, trouble)
                    continue
                parts += bool(segment.token_ids)
                _extend(result, segment, version)
                if segment.finish_reason != "abort":
                    result.finish_reason, result.stop = segment.finish_reason, segment.stop
                    return result
                if len(result.token_ids) == sampled.max_tokens:
                    result.finish_reason = "length"
                    return result

    def _is_foreign(self, segment: Segment, version: int) -> bool:
        """Whether tokens came from other weights: somebody has started the server anew, with those it begins with."""
        return bool(segment.token_ids) and segment.version != version and self._is_written(version)

    def _is_written(self, version: int) -> bool:
        return self.directory.path(version).is_dir()

    def _set_open(self, value: bool) -> None:
        self._open = value
        self._changed.set()
        self._changed = asyncio.Event()

    async def _segment(self, call: Call) -> Segment | None:
        task = asyncio.ensure_future(self._server.send(call, self.config.request_s))
        self._running.add(task)
        try:
            await asyncio.wait([task])
            return None if task.cancelled() else self.dialect.read(task.result())
        finally:
            self._running.discard(task)
            task.cancel()

    @contextmanager
    def _listed(self, result: Generation) -> Iterator[None]:
        self._partial[id(result)] = result
        try:
            yield
        finally:
            del self._partial[id(result)]

    async def _stop(self) -> None:
        """Let no request draw a token any more."""
        self._set_open(False)
        await self._drain(self.dialect.pause)

    async def _drain(self, ending: Call) -> None:
        """End what is under way; what does not come back in time is sent again whole."""
        await self._server.send(ending, self.config.health_s)
        deadline = time.monotonic() + self.config.drain_s
        while self._running and time.monotonic() < deadline:
            await asyncio.wait(list(self._running), timeout=_POLL_S)
            await asyncio.sleep(0)
        await self._cancel_running()

    async def _cancel_running(self) -> None:
        for task in list(self._running):
            task.cancel()
        while self._running:
            await asyncio.sleep(0)

    async def _go(self) -> None:
        if not self._paused:
            await self._server.send(self.dialect.resume, self.config.health_s)
            self._set_open(True)

    async def _load(self) -> None:
        """Have the server hold the present version, where one has been written."""
        if not self._is_written(self._version):
            return
        path = self.directory.path(self._version).absolute()
        for call in self.dialect.load(path, self._version, self.config.load_s):
            try:
                answer = await self._server.send(call, self.config.load_s)
            except RequestError as error:
                raise SyncError(f"{self.url} does not load {path}: {error}") from None
            if answer.get("success") is False:
                raise SyncError(f"{self.url} does not load {path}: {answer.get('message', call.path)}")
        held = await self._held()
        if held != self._version:
            raise SyncError(f"{self.url} holds version {held} after version {self._version} was loaded")

    async def _recover(self, life: int, why: str) -> None:
        """Bring a server back that did not answer; if another task has done so since `life`, only return."""
        async with self._control:
            if self._life != life or self._broken is not None:
                return
            self._life += 1
            well = await self.is_healthy()
            if well and await self._is_current():
                return
            self._set_open(False)
            await self._cancel_running()
            try:
                await self._bring_up(restart=not well)
                await self._go()
            except (ServerError, SyncError, RequestError) as error:
                self._broken = f"{why}; {error}"
                self._set_open(True)

    async def _is_current(self) -> bool:
        """Whether a server that is well holds the present version, where one has been written."""
        if not self._is_written(self._version):
            return True
        try:
            return await self._held() == self._version
        except (ServerError, RequestError):
            return False

    async def _held(self) -> int | None:
        return self.dialect.read_version(await self._server.send(self.dialect.version, self.config.health_s))

    async def _bring_up(self, *, restart: bool) -> None:
        """Have a server that is well and holds the present version; start it again where it is dead and ours."""
        deadline = time.monotonic() + self.config.start_s
        while True:
            if self.process is not None and (restart or not self.process.is_alive):
                if self.num_restarts >= self.config.max_restarts:
                    raise ServerError(f"{self.url} has died {self.num_restarts + 1} times: see {self.process.log}")
                self.num_restarts += 1
                await asyncio.to_thread(self.process.start)
                restart, deadline = False, time.monotonic() + self.config.start_s
            if await self.is_healthy():
                break
            if time.monotonic() > deadline:
                raise ServerError(f"{self.url} did not come up in {self.config.start_s:g} s")
            await asyncio.sleep(_POLL_S * 4)
        if await self._held() != self._version and self._is_written(self._version):
            await self._server.send(self.dialect.pause, self.config.health_s)
            await self._load()

    async def _keep_watch(self) -> None:
        misses = 0
        while self._broken is None:
            await asyncio.sleep(self.config.health_every_s)
            if self._control.locked():  # it is being seen to
                continue
            life = self._life
            misses = 0 if await self.is_healthy() and await self._is_current() else misses + 1
            if misses >= self.config.health_misses:
                await self._recover(life, f"it was not well {misses} times")
                misses = 0


def _extend(result: Generation, segment: Segment, version: int) -> None:
    if not result.token_ids:
        result.cached_tokens = segment.cached_tokens
    result.token_ids += segment.token_ids
    result.logprobs += segment.logprobs
    result.policy_versions += [version] * len(segment.token_ids)
