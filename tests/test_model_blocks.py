"""Checkpointing, compilation and the moves, gates and norms with gradients of their own."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_model import packed, random_model
from torch.autograd import gradcheck
from torch.profiler import profile

from glmcore.errors import ConfigError
from glmcore.model import blocks
from glmcore.model.moe import apply_experts, apply_in_buckets, batched_linear, grouped_linear, router_figures
from glmcore.model.norm import RMSNorm
from glmcore.model.rope import apply_rotary, rotary_angles
from glmcore.model.routing import combine, dispatch
from glmcore.model.swiglu import swiglu

WIDE = {"dtype": torch.float64, "requires_grad": True}


def step(model, lengths=(40, 9, 70)):
    """Loss, gradients and the memory that the forward pass leaves behind for the backward pass."""
    ids, positions, layout = packed(list(lengths))
    model.zero_grad()
    with profile(profile_memory=True) as profiled:
        output = model(ids, positions, layout, with_mtp=True)
        loss = output.hidden.square().sum() + output.mtp_hidden.square().sum()
    loss.backward()
    kept = sum(event.self_cpu_memory_usage for event in profiled.key_averages())
    grads = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    return loss.detach(), grads, kept


def test_checkpointing_keeps_less_and_changes_no_bit():
    model = random_model(torch.float32)
    loss, grads, kept = step(model)
    assert len(grads) > 40
    bytes_kept = [kept]
    for mode in ("selective", "full"):
        other, other_grads, kept = step(model.set_activation_checkpointing(mode))
        assert torch.equal(other, loss)
        assert all(torch.equal(other_grads[name], grad) for name, grad in grads.items())
        bytes_kept.append(kept)
    # Of a block `full` keeps its input; all else that is left are hidden states, routings and the two losses' inputs.
    assert bytes_kept[1] < 0.75 * bytes_kept[0]
    assert bytes_kept[2] < 0.25 * bytes_kept[0]
    with pytest.raises(ConfigError, match="it must be one of none, selective, full"):
        model.set_activation_checkpointing("some")


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # of the compiler's own stand-ins
def test_compiled_blocks_agree_to_rounding_whatever_the_lengths():
    compiled = random_model(torch.float32, num_hidden_layers=2)
    eager = random_model(torch.float32, num_hidden_layers=2)
    compiled.compile_blocks()
    frames = []
    for lengths in ([40, 9], [3, 33, 21], [5] * 12):
        loss, grads, _ = step(eager, lengths)
        other, other_grads, _ = step(compiled, lengths)
        # Sums of some hundred terms of float32 in another order, and a few layers of them.
        torch.testing.assert_close(other, loss, rtol=1e-5, atol=0)
        for name, grad in grads.items():
            torch.testing.assert_close(other_grads[name], grad, rtol=0, atol=1e-4 * float(grad.abs().max()) + 1e-6)
        frames.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert frames[0] == frames[-1]  # one compilation serves all lengths


def test_compiling_without_a_compiler_is_said(monkeypatch):
    monkeypatch.setattr(blocks.shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs a C\+\+ compiler"):
        random_model().compile_blocks()


@settings(deadline=None, max_examples=20)
@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_grouped_products_equal_a_product_per_group(sizes, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(sum(sizes), 16, generator=generator)
    weight = torch.randn(len(sizes), 8, 16, generator=generator)
    ends = torch.tensor(sizes).cumsum(0).to(torch.int32)
    expected = torch.cat([part.double() @ w.double().T for part, w in zip(rows.split(sizes), weight, strict=True)])
    # Sums of 16 products of size about 1 in float32.
    torch.testing.assert_close(grouped_linear(rows, weight, ends).double(), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(batched_linear(rows.double(), weight.double(), ends), expected)


@settings(deadline=None, max_examples=20)
@given(sizes=st.lists(st.integers(0, 70), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_padding_the_rows_of_experts_to_buckets_changes_neither_result_nor_gradients(sizes, seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(sum(sizes), 16), (len(sizes), 16, 16), (len(sizes), 16, 8)]
    inputs = [torch.randn(shape, generator=generator, **WIDE) for shape in shapes]
    ends = torch.tensor(sizes).cumsum(0).to(torch.int32)
    rows, *weights = inputs
    told = []
    for way in (apply_in_buckets, apply_experts):
        out = way(rows, ends, *weights)
        told.append((out, *torch.autograd.grad(out.square().sum(), inputs)))
    # Sums of at most 70 products of size below some 100 in float64.
    torch.testing.assert_close(told[0], told[1], rtol=1e-11, atol=1e-9)
    halves = [tensor.detach().bfloat16() for tensor in (rows, *weights)]
    out, exact = (apply_experts(part[0], ends, *part[1:]) for part in (halves, [half.double() for half in halves]))
    # Gate, up, their product (twice) and the result are rounded to 2^-9 of themselves, and sums of 8 largely cancel.
    bound = 0.03 * float(exact.abs().max()) if len(exact) else 0.0
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=bound)


def test_gradients_of_moves_gate_norm_and_rotation_are_those_of_their_formulas():
    torch.manual_seed(0)
    expert = torch.randint(0, 3, (7, 2))
    order = expert.flatten().argsort(stable=True)
    place, token = order.argsort().view(7, 2), order // 2
    x, rows, weight = torch.randn(7, 4, **WIDE), torch.randn(14, 4, **WIDE), torch.rand(7, 2, **WIDE)
    torch.testing.assert_close(dispatch(x, token, place), x[token])
    torch.testing.assert_close(combine(rows, weight, token, place), (rows[place] * weight[..., None]).sum(1))
    assert gradcheck(lambda x: dispatch(x, token, place), x)
    assert gradcheck(lambda rows, weight: combine(rows, weight, token, place), (rows, weight))
    gate, up = torch.randn(5, 4, **WIDE), torch.randn(5, 4, **WIDE)
    torch.testing.assert_close(swiglu(gate, up), F.silu(gate) * up)
    assert gradcheck(swiglu, (gate, up))
    norm = RMSNorm(4, 1e-5).double()
    torch.nn.init.normal_(norm.weight)
    heads = torch.randn(5, 3, 4, **WIDE)
    torch.testing.assert_close(norm(heads), F.rms_norm(heads, (4,), norm.weight, 1e-5))
    assert gradcheck(lambda x, w: torch.func.functional_call(norm, {"weight": w}, x), (heads, norm.weight))
    angles = tuple(part.double() for part in rotary_angles(torch.arange(5), 2, 100.0))
    assert gradcheck(lambda x: apply_rotary(x, *angles), heads)


def test_the_correction_bias_stays_in_float32():
    model = random_model(torch.float32).bfloat16()
    assert all(router.e_score_correction_bias.dtype == torch.float32 for router in model.routers)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    ids, positions, layout = packed([20, 11])
    output = model(ids, positions, layout)
    output.hidden.float().sum().backward()
    assert output.hidden.dtype == torch.bfloat16
    assert output.hidden.isfinite().all()


def test_figures_of_routers_tell_shares_violation_and_dead_experts():
    figures = router_figures(torch.tensor([[4, 4, 4, 4], [12, 4, 0, 0], [0, 0, 0, 0]]))
    torch.testing.assert_close(figures.share[1], torch.tensor([0.75, 0.25, 0, 0]))
    torch.testing.assert_close(figures.max_violation, torch.tensor([0.0, 2.0, 0.0]))
    assert figures.num_dead.tolist() == [0, 2, 4]


STEPS = """
import ctypes, gc, resource
import numpy as np, torch
from conftest import TINY
from glmcore.model.config import GlmConfig
from glmcore.model.glm import Glm
from glmcore.model.layout import DocumentLayout
from glmcore.train.loss import linear_cross_entropy

def resident():
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

torch.set_num_threads(1)
generator = np.random.default_rng(0)
fields = {"num_hidden_layers": 1, "first_k_dense_replace": 0, "num_nextn_predict_layers": 0}
model = Glm(GlmConfig(**{**TINY, **fields})).init_weights(0)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
sizes = []
for step in range(1_000):
    lengths = generator.multinomial(48, np.ones(4) / 4)
    ids = torch.from_numpy(generator.integers(0, 64, 48))
    positions = torch.cat([torch.arange(length) for length in lengths.tolist()])
    layout = DocumentLayout.from_cu_seqlens(np.concatenate(([0], lengths.cumsum())))
    linear_cross_entropy(model(ids, positions, layout).hidden, model.lm_head.weight, ids).backward()
    optimizer.step()
    optimizer.zero_grad()
    if step % 100 == 99:
        sizes.append(resident())
print(np.polyfit(np.arange(200, 1001, 100), sizes[1:], 1)[0])
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the resident size from /proc")
def test_a_thousand_steps_take_no_more_memory_than_a_hundred():
    command = [sys.executable, "-c", STEPS]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    # One activation left behind, 48 tokens of 32 float32, would be 6,144 bytes a step. Pages that the allocators of C and
    # Python keep or give back move the slope by some hundreds of bytes.
    assert abs(float(done.stdout)) < 2_000


def test_the_python_of_the_models_guide_runs():
    guide = (Path(__file__).parents[1] / "docs" / "model.md").read_text()
    blocks_of_code = re.findall(r"```python\n(.*?)```", guide, flags=re.DOTALL)
    assert len(blocks_of_code) == 3
    space: dict[str, object] = {}
    for code in blocks_of_code:
        exec(compile(code, "model.md", "exec"), space)
