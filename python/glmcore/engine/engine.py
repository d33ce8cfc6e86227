"""Continuous batching: requests join and leave between steps, and each step is one batch over all of them.

Shapes: S sequences that draw in a step, V vocabulary.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence

import torch

from glmcore.engine import sequence as own
from glmcore.engine.blocks import BlockPool
from glmcore.engine.config import EngineConfig
from glmcore.engine.drafting import Drafter
from glmcore.engine.guide import Grammars
from glmcore.engine.limit import answer_limit
from glmcore.engine.memory import cache_blocks
from glmcore.engine.request import Delta, EngineStats, Generation
from glmcore.engine.runner import Runner
from glmcore.engine.sampler import Sampler
from glmcore.engine.sampling import SamplingParams
from glmcore.engine.scheduler import Scheduler
from glmcore.engine.sequence import Part
from glmcore.engine.speculative import verify
from glmcore.engine.stopping import TextStream, special_ids
from glmcore.errors import ConfigError, QueueFullError, RequestError, SyncError
from glmcore.fp8.bucket import Bucket
from glmcore.fp8.receiver import WeightReceiver
from glmcore.model.fp8 import weights_to_fill
from glmcore.model.glm import Glm
from glmcore.model.paged import BLOCK
from glmcore.tokenizer import Tokenizer


class Engine:
    """Generates from one copy of the weights, which can be replaced between steps. For one thread.

    Args:
        model: Taken over; `update_weights` replaces its weights.
        stop_token_ids: Tokens that end a text where the request names none.
        tokenizer: Gives the deltas their text; without one they have token ids alone.
        config: How much at a time, and how much memory.
    """

    def __init__(
        self,
        model: Glm,
        stop_token_ids: Iterable[int],
        *,
        tokenizer: Tokenizer | None = None,
        config: EngineConfig = EngineConfig(),  # noqa: B008 (frozen)
    ) -> None:
        self.model = model
        self._weights = weights_to_fill(model)
        self.stop_token_ids = frozenset(stop_token_ids)
        self.tokenizer = tokenizer
        self.config = config
        self.policy_version = 0
        self._special = special_ids(tokenizer) if tokenizer else frozenset()
        self.grammars = Grammars(tokenizer, model.config.vocab_size) if tokenizer else None
        """Compiles constraints. Other threads may compile ahead, so that `add` takes no time."""
        self.cache_tokens = BLOCK * cache_blocks(model, config)
        """Tokens that the key-value cache holds."""
        if config.num_draft_tokens and model.mtp_layer is None:
            raise ConfigError("num_draft_tokens needs a model with an MTP layer: this one has none")
        with_mtp, num_blocks = config.num_draft_tokens > 0, self.cache_tokens // BLOCK
        self._runner = Runner(model, num_blocks, with_mtp=with_mtp, record_experts=config.record_experts)
        self._pool = BlockPool(num_blocks, reuse=config.reuse_prefixes)
        self._scheduler = Scheduler(config, self._pool, self._runner.record)
        self._sampler = Sampler(model.config.vocab_size, model.lm_head.weight.device, self.grammars)
        self._drafter = Drafter(self._runner, self._sampler, config.num_draft_tokens) if with_mtp else None
        self._choices: dict[int, list[own.Sequence]] = {}
        """Sequences of each request that has not ended."""
        self._aborted: list[tuple[int, Delta]] = []
        self._next_id = itertools.count()
        self._arrivals = itertools.count()
        self._generated_tokens = self._drafts = self._kept_drafts = 0
        self._torn_by: int | None = None
        """Version of the update that has begun and not ended."""
        self._asleep = False

    # Requests

    def add(self, prompt_ids: Sequence[int], params: SamplingParams, *, priority: int = 0, whole: bool = False) -> int:
        """Take a request on; `step` will give its tokens.

        Args:
            prompt_ids: Not empty.
            params: Of sampling.
            priority: Lower numbers go first, then who came first.
            whole: Tell of each choice once, at its end: a step then does little for it but to draw.

        Returns:
            The number of the request.

        Raises:
            QueueFullError: Too many sequences wait already.
            RequestError: The request can never be served: the prompt is empty, has an id outside the vocabulary, fills
                the context, or prompt and answer do not fit the cache.
        """
        return self._add(prompt_ids, params, self._limit(prompt_ids, params), priority, whole)

    def _add(self, prompt_ids: Sequence[int], params: SamplingParams, limit: int, priority: int, whole: bool) -> int:
        if params.constraint is not None and self.grammars is not None:
            self.grammars.compile(params.constraint)
        waiting = self._scheduler.num_waiting
        has_place = waiting == 0 and self._scheduler.num_running + params.n <= self.config.max_sequences
        if waiting + params.n > self.config.max_waiting and not has_place:
            raise QueueFullError(
                f"{waiting} sequences wait, {self.config.max_waiting} may, the request asks for {params.n} more: "
                "try again later"
            )
        request_id = next(self._next_id)
        stops = params.stop_ids(self.stop_token_ids)
        choices = [
            own.Sequence(
                request_id,
                index,
                params,
                prompt_ids,
                stops,
                limit,
                (priority, next(self._arrivals)),
                TextStream(self.tokenizer, self._special, params.stop, params.min_tokens) if self.tokenizer else None,
                whole,
            )
            for index in range(params.n)
        ]
        self._choices[request_id] = choices
        for choice in choices:
            self._scheduler.add(choice)
        return request_id

    def abort(self, request_id: int) -> None:
        """End a request and free what it holds at once; the next `step` tells of it. Nothing if it has ended."""
        for choice in self._choices.get(request_id, []):
            if not choice.ended:
                self._end(choice)
                choice.finish_reason = "abort"
                self._aborted.append((request_id, choice.tell()))
        self._choices.pop(request_id, None)

    def take_aborted(self) -> list[tuple[int, Delta]]:
        """The last deltas of aborted requests, which the next `step` would tell."""
        told, self._aborted = self._aborted, []
        return told

    @property
    def has_work(self) -> bool:
        """Whether `step` has something to do or to tell."""
        return bool(self._choices or self._aborted)

    @property
    def unfinished(self) -> list[int]:
        """Requests that have not ended."""
        return list(self._choices)

    # Steps

    @torch.no_grad()
    def step(self) -> list[tuple[int, Delta]]:
        """Compute one batch: a token of every running sequence, and parts of prompts.

        Returns:
            The number of the request and what is new, for each choice of which something is.

        Raises:
            SyncError: A weight update has begun and not ended, so that the weights are a mixture; or the engine sleeps.
        """
        self.check_whole()
        if self._asleep:
            raise SyncError("the engine sleeps: call wake() first")
        told = self.take_aborted()
        parts = self._scheduler.plan(self._drafter.draft if self._drafter else None)
        if not parts:
            return told
        logits, hidden = self._runner.run(parts)
        if self._drafter and hidden is not None:
            self._drafter.follow(parts, hidden)
        self._runner.copy_blocks(self._scheduler.computed(parts))
        with_drafts = [part for part in parts if part.has_drafts] if self._drafter else []
        if with_drafts:
            drafted = torch.tensor([part.has_drafts for part in parts for _ in range(part.num_scores)])
            told += self._verify(logits[drafted.to(logits.device)], with_drafts)
            logits = logits[~drafted.to(logits.device)]
            parts = [part for part in parts if not part.has_drafts]
        return told + self._draw(logits, parts)

    def _verify(self, logits: torch.Tensor, parts: list[Part]) -> list[tuple[int, Delta]]:
        """From scores after the last token and after each draft to tokens, for parts with drafts."""
        assert self._drafter is not None
        assert self._drafter.drafts is not None
        drafts = self._drafter.drafts
        self._drafts += drafts.tokens.numel()
        sequences = [part.members[0] for part in parts]
        logits = logits.unflatten(0, (len(sequences), -1))
        slots = [self._slot(sequence) for sequence in sequences]
        verified = verify(self._sampler, logits, slots, drafts.tokens, drafts.probability)
        told: list[tuple[int, Delta]] = []
        for row, sequence in enumerate(sequences):
            tokens, tops = verified.tokens[row], verified.top_logprobs[row] or [None] * len(verified.tokens[row])
            self._generated_tokens += len(tokens)
            self._kept_drafts += len(tokens) - 1
            assert sequence.states is not None
            sequence.states = sequence.states[: len(tokens)]
            for token, logprob, top in zip(tokens, verified.logprobs[row], tops, strict=True):
                ended = "abort" if verified.broken[row] else None
                self._record(told, sequence, token, logprob, top, ended)
                if sequence.ended:
                    break
                sequence.length += 1
                sequence.lag += 1
            else:
                sequence.length -= 1
                sequence.lag -= 1
        return told

    def check_whole(self) -> None:
        """Raise SyncError where a weight update has begun and not ended."""
        if self._torn_by is not None:
            raise SyncError(f"the weights are a mixture: the update to version {self._torn_by} did not complete")

    def _draw(self, logits: torch.Tensor, parts: list[Part]) -> list[tuple[int, Delta]]:
        """From scores [S, V] to tokens. Sequences that begin together share the scores of their prompt's end."""
        drawing = [part.members for part in parts if part.members]
        sequences = [sequence for members in drawing for sequence in members]
        if not sequences:
            return []
        if len(sequences) > len(drawing):
            counts = torch.tensor([len(members) for members in drawing], device=logits.device)
            logits = logits.repeat_interleave(counts, 0)
        drawn = self._sampler.draw(logits, [self._slot(sequence) for sequence in sequences])
        self._generated_tokens += len(sequences)
        tokens, logprobs = drawn.tokens.tolist(), drawn.logprobs.tolist()
        top, ended = drawn.top_logprobs, drawn.ended
        told: list[tuple[int, Delta]] = []
        for row, sequence in enumerate(sequences):
            self._record(told, sequence, tokens[row], logprobs[row], top.get(row), ended.get(row))
        return told

    def _record(
        self,
        told: list[tuple[int, Delta]],
        sequence: own.Sequence,
        token: int,
        logprob: float,
        top: dict[int, float] | None,
        ended: str | None,
    ) -> None:
        """Add a token to a sequence, and to `told` what is to be told of it now."""
        if sequence.take(token, logprob, self.policy_version, top, ended):
            self._end(sequence)
        elif sequence.whole:
            return
        told.append((sequence.request_id, sequence.tell()))

    def _slot(self, sequence: own.Sequence) -> int:
        if sequence.slot is None:
            stops, index = sequence.stop_ids, sequence.index
            sequence.slot = self._sampler.admit(sequence.params, sequence.prompt_ids, stop_ids=stops, choice=index)
        return sequence.slot

    def _end(self, sequence: own.Sequence) -> None:
        self._scheduler.end(sequence)
        if sequence.slot is not None:
            self._sampler.release(sequence.slot)
        choices = self._choices[sequence.request_id]
        if all(choice.ended for choice in choices):
            del self._choices[sequence.request_id]

    # Offline

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        params: Sequence[SamplingParams],
        on_tokens: Callable[[int], None] = lambda _: None,
    ) -> list[Generation]:
        """Continue each prompt, beside whatever else the engine does.

        Args:
            prompts: Token ids, none empty.
            params: One for each prompt; with `n = 1`.
            on_tokens: Called after every batched step with the number of tokens drawn.

        Returns:
            One generation a prompt, in order.

        Raises:
            RequestError: A request can never be served; see `add`.
            SyncError: See `step`.
        """
        limits = []
        for index, request in enumerate(zip(prompts, params, strict=True)):
            try:
                limits.append(self._limit(*request))
            except RequestError as error:
                raise RequestError(f"prompt {index}: {error}") from None
            if request[1].n != 1:
                raise RequestError(f"prompt {index}: generate() gives one continuation a prompt: repeat it for n")
        results = [Generation() for _ in prompts]
        place: dict[int, int] = {}
        to_add = iter(range(len(prompts)))
        left = len(prompts)
        while left:
            room = max(self.config.max_sequences + 1 - self._scheduler.num_waiting, 0)
            for index in itertools.islice(to_add, room):
                place[self._add(prompts[index], params[index], limits[index], 0, whole=True)] = index
            before = self._generated_tokens
            for number, delta in self.step():
                if number in place:
                    results[place[number]].add(delta)
                    left -= 1
            on_tokens(self._generated_tokens - before)
        return results

    def _limit(self, prompt_ids: Sequence[int], params: SamplingParams) -> int:
        return answer_limit(
            prompt_ids, params, self.model.config, self.cache_tokens, with_text=self.tokenizer is not None
        )

    # Weights and memory

    def update_weights(self, version: int, buckets: Iterable[Bucket]) -> str:
        """Replace all parameters and buffers; see `start_update`.

        Args:
            version: Policy version of the new weights, not below the present one.
            buckets: `WeightPublisher.publish` of that version.

        Returns:
            `weights_checksum` of the weights that the engine now holds: the trainer's.

        Raises:
            SyncError: The update is not complete, damaged or older; without a new one the engine generates no more.
        """
        receiver = self.start_update(version)
        for bucket in buckets:
            receiver.load(bucket)
        return receiver.finish()

    def start_update(self, version: int) -> WeightReceiver:
        """The receiver of an update that comes bucket by bucket; until its `finish` the engine generates nothing.

        What is being generated then goes on under the new weights: its text is read again, and nothing that older
        weights have computed is used any more.

        Raises:
            SyncError: The engine holds a newer version.
        """
        if version < self.policy_version:
            raise SyncError(f"an update to version {version} came, the engine holds version {self.policy_version}")
        self._torn_by = version
        return WeightReceiver(self._weights, version, self._complete_update)

    def _complete_update(self, version: int) -> None:
        self._scheduler.recompute_all()
        self.policy_version = version
        self._torn_by = None

    def sleep(self) -> None:
        """Give the memory of the cache back, to a trainer beside the engine; requests are kept and read again."""
        self._scheduler.recompute_all()
        self._runner.sleep()
        self._asleep = True

    def wake(self) -> None:
        """Take memory for the cache again."""
        self._runner.wake()
        self._asleep = False

    def stats(self) -> EngineStats:
        """What the engine does, and what it has done."""
        pool, scheduler = self._pool, self._scheduler
        return EngineStats(
            running=scheduler.num_running,
            waiting=scheduler.num_waiting,
            cache_used=1 - pool.available / pool.num_blocks,
            cache_tokens=self.cache_tokens,
            reusable_tokens=pool.num_idle * BLOCK,
            prompt_tokens=scheduler.prompt_tokens,
            cached_tokens=scheduler.cached_tokens,
            generated_tokens=self._generated_tokens,
            preemptions=scheduler.preemptions,
            policy_version=self.policy_version,
            drafts=self._drafts,
            kept_drafts=self._kept_drafts,
        )
