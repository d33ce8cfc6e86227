"""What vLLM on a CPU makes of a checkpoint. Run by the Python that has vLLM, with a request and an answer file of JSON.

Request: `directory`, `dtype`, `max_tokens` and `prompts`. Answer, for each prompt: the greedy `ids`; `of_prompt`, the
log-probs of the whole vocabulary after each of its tokens but the last; `of_ids`, those that each id was drawn from.
"""

import json
import sys
from pathlib import Path


def main() -> None:
    import torch
    from vllm import LLM, SamplingParams
    from vllm.model_executor.kernels.linear.scaled_mm.cpu import CPUFp8BlockScaledMMKernel
    from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUExpertsFp8

    if not torch.cpu._is_amx_tile_supported():
        # vLLM 0.32 offers its block-FP8 kernels to processors with AMX only. The kernels themselves also have AVX-512
        # code, which gives the same products more slowly: only the question for AMX is answered otherwise here.
        CPUFp8BlockScaledMMKernel.is_supported = classmethod(lambda cls, compute_capability=None: (True, None))
        CPUExpertsFp8._supports_current_device = staticmethod(lambda: True)
    request = json.loads(Path(sys.argv[1]).read_text())
    llm = LLM(
        request["directory"],
        dtype=request["dtype"],
        skip_tokenizer_init=True,
        enforce_eager=True,
        max_model_len=64,
        max_num_seqs=8,
        max_logprobs=-1,
        gpu_memory_utilization=0.1,  # of the CPU's memory
        distributed_executor_backend="uni",
    )
    params = SamplingParams(
        temperature=0,
        max_tokens=request["max_tokens"],
        logprobs=-1,
        prompt_logprobs=-1,
        detokenize=False,
        ignore_eos=True,
    )
    prompts = [{"prompt_token_ids": ids} for ids in request["prompts"]]
    results = llm.generate(prompts, params, use_tqdm=False)
    answers = [
        {
            "ids": list(result.outputs[0].token_ids),
            "of_prompt": [row(step) for step in result.prompt_logprobs[1:]],
            "of_ids": [row(step) for step in result.outputs[0].logprobs],
        }
        for result in results
    ]
    Path(sys.argv[2]).write_text(json.dumps(answers))


def row(step: dict) -> list[float]:
    return [step[token].logprob for token in range(len(step))]


if __name__ == "__main__":
    main()
