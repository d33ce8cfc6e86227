"""What vLLM makes of an export with its tokenizer and chat template. Run by the Python that has vLLM.

Reads a request file of JSON and writes an answer file. Request: `directory`, `conversations`, `max_tokens`, `drafts`
(tokens that the MTP layer drafts; 0 for none) and `replies`, texts as a model may write them. Answer: of each
conversation `prompt`, greedy `ids` and `logprobs`; `drafted` and `accepted` tokens; what the parsers `glm45` read in
each reply: `reasoning`, `content`, `calls`.
"""

import json
import sys
from pathlib import Path

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    },
}


def main() -> None:
    from vllm import LLM, SamplingParams

    request = json.loads(Path(sys.argv[1]).read_text())
    speculative = {"method": "mtp", "num_speculative_tokens": request["drafts"]} if request["drafts"] else None
    llm = LLM(
        request["directory"],
        dtype="float32",
        enforce_eager=True,
        max_model_len=256,
        max_num_seqs=8,
        gpu_memory_utilization=0.1,  # of the CPU's memory
        distributed_executor_backend="uni",
        speculative_config=speculative,
        disable_log_stats=False,
    )
    params = SamplingParams(temperature=0, max_tokens=request["max_tokens"], logprobs=0, ignore_eos=True)
    results = llm.chat(request["conversations"], params, use_tqdm=False)
    answers = [
        {
            "prompt": list(result.prompt_token_ids),
            "ids": list(result.outputs[0].token_ids),
            "logprobs": [
                step[token].logprob
                for token, step in zip(result.outputs[0].token_ids, result.outputs[0].logprobs, strict=True)
            ],
        }
        for result in results
    ]
    counts = {metric.name: metric.value for metric in llm.get_metrics() if hasattr(metric, "value")}
    told = {
        "answers": answers,
        "drafted": counts.get("vllm:spec_decode_num_draft_tokens", 0),
        "accepted": counts.get("vllm:spec_decode_num_accepted_tokens", 0),
        "read": [parsed(llm.get_tokenizer(), reply) for reply in request["replies"]],
    }
    Path(sys.argv[2]).write_text(json.dumps(told))


def parsed(tokenizer: object, reply: str) -> dict:
    """What a server with both parsers `glm45` makes of a reply."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager

    request = ChatCompletionRequest(model="m", messages=[{"role": "user", "content": "x"}], tools=[TOOL])
    reasoning = ReasoningParserManager.get_reasoning_parser("glm45")(tokenizer)
    thought, rest = reasoning.extract_reasoning(reply, request)
    tools = ToolParserManager.get_tool_parser("glm45")(tokenizer, request.tools)
    found = tools.extract_tool_calls(rest or "", request)
    calls = [[call.function.name, json.loads(call.function.arguments)] for call in found.tool_calls]
    return {"reasoning": thought, "content": found.content, "calls": calls}


if __name__ == "__main__":
    main()
