"""What a vLLM or SGLang server answers, for `scripted_server`: its tokens tell the weights and the place they are from."""

import threading
import time
from typing import Any

TOKEN_S = 0.01
"""Seconds that a token takes."""


class Model:
    """A server's state: the token at place `i` of a text is `100 * version + i`."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.version: int | None = None
        self.num_aborts = 0
        self.paused = False
        self.calls: list[str] = []
        self.prompts: list[list[int]] = []
        self.seeds: list[int] = []
        self.loaded: list[str] = []
        self.faults: list[tuple[int, Any]] = []
        """Answers in the place of the next generations; status 0 closes the connection."""
        self.is_well = True
        self.lock = threading.Lock()

    def __call__(self, method: str, path: str, body: dict | None) -> tuple[int, Any]:
        name = path.partition("?")[0]
        with self.lock:
            self.calls.append(name)
        if name == "/health":
            return (200, "") if self.is_well else (503, "")
        if name in ("/inference/v1/generate", "/generate"):
            with self.lock:
                if self.faults:
                    return self.faults.pop(0)
            return 200, self.generate(body)
        if name in ("/weight_info", "/get_model_info"):
            return 200, {"weight_version": "default" if self.version is None else str(self.version)}
        if name in ("/pause", "/pause_generation"):
            self.paused = True
            self.num_aborts += 1
        elif name in ("/resume", "/continue_generation"):
            self.paused = False
        elif name in ("/abort_requests", "/abort_request"):
            self.num_aborts += 1
        elif name in ("/collective_rpc", "/update_weights_from_disk"):
            assert self.paused, "weights are loaded while nothing is drawn"
            path = body["kwargs"]["weights_path"] if self.kind == "vllm" else body["model_path"]
            self.loaded.append(path)
            if self.kind == "sglang":
                self.version = int(body["weight_version"])
            return 200, {"success": True, "results": [None]}
        elif name == "/update_weight_version":
            self.version = int(body["new_version"])
        return 200, {}

    def generate(self, body: dict) -> dict:
        ids = body["token_ids" if self.kind == "vllm" else "input_ids"]
        params = body["sampling_params"]
        most = params["max_tokens" if self.kind == "vllm" else "max_new_tokens"]
        with self.lock:
            self.prompts.append(ids)
            self.seeds.append(params["seed" if self.kind == "vllm" else "sampling_seed"])
            aborts = self.num_aborts
        tokens: list[int] = []
        reason, stop = "length", None
        while len(tokens) < most:
            time.sleep(TOKEN_S)
            if self.num_aborts != aborts:
                reason = "abort"
                break
            tokens.append(100 * (self.version or 0) + len(ids) + len(tokens))
            if tokens[-1] in params["stop_token_ids"]:
                reason, stop = "stop", tokens[-1]
                break
        version = "default" if self.version is None else str(self.version)
        if self.kind == "vllm":
            spans = [{"version": version, "start": 0, "end": len(tokens)}] if tokens else None
            places = [{"token_id": token, "logprob": -token / 100} for token in tokens]
            choice = {"index": 0, "finish_reason": reason, "stop_reason": stop, "token_ids": tokens}
            return {"choices": [{**choice, "logprobs": {"content": places}, "weight_versions": spans}]}
        ended = {"type": reason, **({"matched": stop} if stop is not None else {})}
        places = [[-token / 100, token, None] for token in tokens]
        return {"meta_info": {"output_token_logprobs": places, "finish_reason": ended, "weight_version": version}}
