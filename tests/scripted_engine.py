"""A policy that says what it is told, and an environment that does, for tests of episodes."""

import asyncio

from glmcore.engine.request import Generation
from glmcore.envs.protocol import Start, StepResult

STOPS = {"user": "<|user|>", "tool": "<|observation|>", "end": "<|endoftext|>"}


class Script:
    """A policy engine that samples given texts, in order; each may begin with a stop token's name and a colon."""

    def __init__(self, tokenizer, *replies, version=3, piece=None):
        self.tokenizer = tokenizer
        self.replies = list(replies)
        self.version = version
        self.piece = piece
        self.prompts = []
        self.params = []
        self._left = None

    async def generate(self, prompt_ids, params, *, priority=0):
        self.prompts.append(list(prompt_ids))
        self.params.append(params)
        if self._left is None:
            reply = self.replies.pop(0)
            if reply is None:
                await asyncio.sleep(3600)
            stop, _, text = reply.partition(":")
            self._left = self.tokenizer.encode(text, special="parse") + [self.tokenizer.token_to_id(STOPS[stop])]
        most = min(params.max_tokens, self.piece or params.max_tokens)
        now, later = self._left[:most], self._left[most:]
        given_up = bool(later) and self.piece is not None and most < params.max_tokens
        self._left = later if given_up else None
        reason = "abort" if given_up else "length" if later else "stop"
        self.version += given_up
        return [
            Generation(
                token_ids=now,
                logprobs=[-0.25] * len(now),
                policy_versions=[self.version - given_up] * len(now),
                finish_reason=reason,
            )
        ]


TOOLS = [{"type": "function", "function": {"name": "look", "description": "Look.", "parameters": {"type": "object"}}}]


class Steps:
    """An environment that gives, message by message, the results it was made with, or raises them."""

    def __init__(self, *results, start=None):
        self.results = list(results)
        self.start = start or Start([{"role": "user", "content": "Go."}], TOOLS)
        self.heard = []
        self.closed = 0

    async def reset(self, task):
        if isinstance(self.start, BaseException):
            raise self.start
        return self.start

    async def step(self, message):
        self.heard.append(message)
        result = self.results.pop(0)
        if isinstance(result, BaseException):
            raise result
        if result == "hang":
            await asyncio.sleep(3600)
        return result

    async def close(self):
        self.closed += 1


def tool(text):
    return StepResult([{"role": "tool", "content": text}])
