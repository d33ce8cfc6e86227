"""The CUDA sources, run on the CPU by `cuda_emulator`, to the bit beside their twins in Rust and the oracle."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cuda_emulator import Emulator, EmulatorError
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import fp8_product as oracle

from glmcore.errors import KernelError
from glmcore.fp8 import cuda, dequantize_blocks, quantize_blocks, quantize_groups

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="the emulator needs g++")

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
BLOCK, SMALL = (128, 128), (16, 8)
SHAPES = [(1, 1), (3, 300), (130, 136), (129, 131), (256, 128), (8, 520)]


@pytest.fixture(autouse=True)
def emulator(monkeypatch):
    return use(monkeypatch, Emulator())


def use(monkeypatch, emulator):
    monkeypatch.setattr(cuda, "launch", emulator)
    return emulator


def random_matrix(shape, dtype, seed=0, spread=3.0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator) * torch.exp(spread * torch.randn(shape, generator=generator))
    values[torch.rand(shape, generator=generator) < 0.05] = 0.0
    values[torch.rand(shape, generator=generator) < 0.05] *= -0.0
    return values.clamp(-6e4, 6e4).to(dtype)


def every_bfloat16():
    return torch.arange(65_536).to(torch.int32).to(torch.uint16).view(torch.bfloat16)


def assert_same_quantised(got, expected):
    q, scale, *_ = got
    expected_q, expected_scale = expected
    assert torch.equal(q.view(torch.uint8), expected_q.view(torch.uint8))
    assert torch.equal(scale, expected_scale)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_blocks_are_bit_equal_to_rust(shape, dtype):
    w = random_matrix(shape, dtype)
    for block in (BLOCK, SMALL) if w.numel() < 5000 else (BLOCK,):
        for ue8m0 in (False, True):
            got = cuda.quantize_blocks(w, block, 1e-10, ue8m0)
            assert_same_quantised(got, quantize_blocks(w, block, "ue8m0" if ue8m0 else "float32"))
            assert got[2].tolist() == [cuda.ALL_FINITE]


def test_blocks_of_a_stack_are_bit_equal_to_rust():
    w = random_matrix((3, 130, 136), torch.bfloat16)
    assert_same_quantised(cuda.quantize_blocks(w, BLOCK, 1e-10, False), quantize_blocks(w))


@settings(deadline=None, max_examples=25)
@given(
    shape=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    block=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    seed=st.integers(0, 2**31),
    spread=st.sampled_from([0.0, 6.0, 20.0]),
)
def test_blocks_of_any_size_are_bit_equal_to_rust(shape, block, seed, spread):
    w = random_matrix(shape, torch.bfloat16, seed, spread)
    assert_same_quantised(cuda.quantize_blocks(w, block, 1e-10, False), quantize_blocks(w, block))


@pytest.mark.parametrize("arch", [800, 900])
def test_every_bfloat16_value_is_bit_equal_to_rust(monkeypatch, arch):
    use(monkeypatch, Emulator(arch))
    by_exponent = every_bfloat16().reshape(512, 128)  # a row has one sign and exponent
    shuffled = every_bfloat16()[torch.randperm(65_536)].reshape(512, 128)
    for w in (by_exponent, by_exponent.roll(64).contiguous(), shuffled):
        expected = quantize_groups(w, not_finite="propagate")
        assert_same_quantised(cuda.quantize_groups(w, 128, 1e-4, False, False), expected)
        expected = quantize_blocks(w, not_finite="propagate")
        assert_same_quantised(cuda.quantize_blocks(w, BLOCK, 1e-10, False), expected)


@pytest.mark.parametrize("arch", [800, 900])
def test_quotients_at_and_beside_every_tie_are_bit_equal_to_rust(monkeypatch, arch):
    use(monkeypatch, Emulator(arch))
    codes = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    ties = (codes[1:] + codes[:-1]) / 2
    rows = []
    for scale in (1.0, 1 / 3, 2.0**-40, 1.7e30, 0.1):
        near = [ties * scale]
        for direction in (0.0, float("inf")):
            near.append(torch.nextafter(near[0], torch.tensor(direction)))
        rows += [torch.cat((part, torch.tensor([448.0 * scale, -448.0 * scale]))) for part in near]
    w = torch.stack(rows).contiguous()
    assert w.shape == (15, 128)
    expected = quantize_groups(w)
    assert_same_quantised(cuda.quantize_groups(w, 128, 1e-4, False, False), expected)
    in_halves = w[:3].to(torch.bfloat16)
    expected = quantize_blocks(in_halves)
    assert_same_quantised(cuda.quantize_blocks(in_halves, BLOCK, 1e-10, False), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_groups_are_bit_equal_to_rust_in_both_orders_of_scales(dtype):
    for shape, group in (((9, 256), 128), ((5, 200), 128), ((7, 33), 16)):
        x = random_matrix(shape, dtype)
        for column_major in (False, True):
            got = cuda.quantize_groups(x, group, 1e-4, False, column_major)
            assert_same_quantised(got, quantize_groups(x, group))
            assert got[1].stride(0) == (1 if column_major else got[1].shape[1])
        assert_same_quantised(cuda.quantize_groups(x, group, 1e-4, True, False), quantize_groups(x, group, "ue8m0"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_first_value_that_is_not_finite_is_told_and_becomes_nan(dtype):
    w = random_matrix((2, 260, 136), dtype)
    w[1, 200, 130], w[1, 131, 5], w[1, 131, 7] = float("nan"), float("inf"), -float("inf")
    got = cuda.quantize_blocks(w, BLOCK, 1e-10, False)
    assert got[2].tolist() == [cuda.ALL_FINITE, 131 * 136 + 5]
    assert_same_quantised(got, quantize_blocks(w, not_finite="propagate"))
    x = w[1, :, :128].contiguous()
    got = cuda.quantize_groups(x, 128, 1e-4, False, False)
    assert got[2].tolist() == [131 * 128 + 5]
    assert_same_quantised(got, quantize_groups(x, not_finite="propagate"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_come_back_bit_equal_to_rust_from_every_code(dtype):
    q = torch.arange(256, dtype=torch.uint8).repeat(2, 33, 1).view(torch.float8_e4m3fn)
    for block in (BLOCK, (7, 12)):
        scale = torch.rand(2, -(-33 // block[0]), -(-256 // block[1])) * torch.tensor([1.0, 1e-6])[:, None, None]
        expected = dequantize_blocks(q, scale, block, dtype)
        got = cuda.dequantize_blocks(q.view(torch.uint8), scale, block, dtype)
        bits = torch.int32 if dtype == torch.float32 else torch.int16
        assert torch.equal(got.view(bits), expected.view(bits))


@pytest.mark.parametrize("reversed_order", [False, True])
def test_many_weights_are_one_launch_and_go_where_they_are_told(monkeypatch, reversed_order):
    emulator = use(monkeypatch, Emulator(reversed_order=reversed_order))
    gate, up = random_matrix((2, 128, 264), torch.bfloat16), random_matrix((2, 128, 264), torch.bfloat16, seed=1)
    down = random_matrix((72, 136), torch.bfloat16, seed=2)
    odd = random_matrix((37, 50), torch.bfloat16, seed=3)
    fused_q, fused_scale = torch.zeros(2, 256, 264, dtype=torch.uint8), torch.zeros(2, 2, 3)
    down_q, down_scale = torch.zeros(136, 72, dtype=torch.uint8), torch.zeros(2, 1)
    odd_q, odd_scale = torch.zeros(50, 37, dtype=torch.uint8), torch.zeros(1, 1)
    weights = [gate[0], up[0], gate[1], up[1], down, torch.zeros(0, 5).bfloat16(), odd]
    codes = [fused_q[0, :128], fused_q[0, 128:], fused_q[1, :128], fused_q[1, 128:], down_q.t()]
    codes += [torch.zeros(0, 5, dtype=torch.uint8), odd_q.t()]
    scales = [fused_scale[0, :1], fused_scale[0, 1:], fused_scale[1, :1], fused_scale[1, 1:], down_scale.t()]
    scales += [torch.zeros(0, 1), odd_scale.t()]

    bad = cuda.quantize_many(weights, codes, scales, BLOCK, 1e-10, False)

    assert emulator.launches == 1
    assert bad.tolist() == [cuda.ALL_FINITE] * 7
    assert_same_quantised((fused_q, fused_scale), quantize_blocks(torch.cat((gate, up), dim=1)))
    assert_same_quantised((down_q.t(), down_scale.t()), quantize_blocks(down))
    assert_same_quantised((odd_q.t(), odd_scale.t()), quantize_blocks(odd))


def test_many_weights_of_several_types_are_a_launch_for_each(emulator):
    weights = [random_matrix((20, 136), dtype, seed) for seed, dtype in enumerate([*DTYPES, torch.bfloat16])]
    weights[3][7, 9] = float("nan")
    codes = [torch.zeros(20, 136, dtype=torch.uint8) for _ in weights]
    scales = [torch.zeros(1, 2) for _ in weights]
    bad = cuda.quantize_many(weights, codes, scales, BLOCK, 1e-10, True)
    assert emulator.launches == 3
    assert bad.tolist() == [cuda.ALL_FINITE] * 3 + [7 * 136 + 9]
    for w, q, scale in zip(weights, codes, scales, strict=True):
        assert_same_quantised((q, scale), quantize_blocks(w, scale_format="ue8m0", not_finite="propagate"))


@pytest.mark.parametrize(("arch", "step"), [(800, 16), (900, 32)])
@pytest.mark.parametrize("reversed_order", [False, True])
def test_products_are_bit_equal_to_the_oracle(monkeypatch, arch, step, reversed_order):
    use(monkeypatch, Emulator(arch, reversed_order=reversed_order))
    for rows, columns, depth in ((1, 8, 16), (70, 136, 304)):
        a, a_scale, _ = cuda.quantize_groups(random_matrix((rows, depth), torch.bfloat16), 128, 1e-4, False, True)
        b, b_scale = quantize_blocks(random_matrix((columns, depth), torch.bfloat16, 1))
        got = cuda.multiply_blocks(a, a_scale, b, b_scale, None, torch.float32)
        expected = oracle.multiply_blocks(a.view(torch.float8_e4m3fn), a_scale, b, b_scale, step=step)
        assert torch.equal(got, expected)
        halves = cuda.multiply_blocks(a, a_scale, b, b_scale, None, torch.bfloat16)
        assert torch.equal(halves, expected.bfloat16())


@pytest.mark.parametrize("sizes", [[3], [0, 70, 0, 0, 5, 64], [2] * 40 + [0, 1], [0] * 33 + [9]])
def test_grouped_products_are_bit_equal_to_the_oracle_of_each_expert(sizes):
    rows, depth, columns = sum(sizes), 144, 24
    ends = torch.tensor(sizes).cumsum(0).to(torch.int32)
    a, a_scale = quantize_groups(random_matrix((rows, depth), torch.bfloat16))
    b, b_scale = quantize_blocks(random_matrix((len(sizes), columns, depth), torch.bfloat16, 1))
    got = cuda.multiply_blocks(a, a_scale, b, b_scale, ends, torch.float32)
    start = 0
    for e, end in enumerate(ends.tolist()):
        expected = oracle.multiply_blocks(a[start:end], a_scale[start:end], b[e], b_scale[e])
        assert torch.equal(got[start:end], expected)
        start = end


WAIT = "        wait_for_copies<1>();\n        __syncthreads();\n"


@pytest.mark.parametrize(
    "edit",
    [
        ("wait_for_copies<1>();", "wait_for_copies<2>();"),
        (WAIT, "        wait_for_copies<1>();\n"),
        (WAIT, WAIT.replace("__syncthreads();", "if (threadIdx.x < 64) __syncthreads();")),
        ("2 * step + lane / 16)", "2 * step + 1 - lane / 16)"),
    ],
)
def test_the_emulator_sees_mistakes(monkeypatch, edit):
    use(monkeypatch, Emulator(edit=edit))
    a, a_scale = quantize_groups(random_matrix((64, 384), torch.bfloat16))
    b, b_scale = quantize_blocks(random_matrix((2, 128, 384), torch.bfloat16, 1))
    ends = torch.tensor([10, 64], dtype=torch.int32)
    try:
        got = cuda.multiply_blocks(a, a_scale, b, b_scale, ends, torch.float32)
    except EmulatorError:
        return
    parts = [oracle.multiply_blocks(a[s:e], a_scale[s:e], b[i], b_scale[i]) for i, s, e in ((0, 0, 10), (1, 10, 64))]
    assert not torch.equal(got, torch.cat(parts))


def under_address_sanitizer(*arguments):
    found = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    library = found.stdout.strip()
    if not Path(library).is_absolute():
        pytest.skip("g++ has no AddressSanitizer here")
    options = "detect_leaks=0:detect_stack_use_after_return=0:protect_shadow_gap=0"
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = os.environ | {"LD_PRELOAD": library, "ASAN_OPTIONS": options, "PYTHONPATH": path}
    command = [sys.executable, "-m", "cuda_emulator.addresses", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_no_kernel_touches_memory_beyond_its_tensors():
    done = under_address_sanitizer()
    assert done.returncode == 0, done.stderr
    assert "no wrong address" in done.stdout


def test_a_write_beyond_a_tensor_is_seen():
    done = under_address_sanitizer("--mistaken")
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: cuda.quantize_blocks(torch.zeros(2, 2, dtype=torch.float64), BLOCK, 1e-10, False),
            "w must be float32",
        ),
        (lambda: cuda.quantize_blocks(torch.zeros(4, 4).t()[1:], BLOCK, 1e-10, False), "w must be contiguous"),
        (lambda: product(depth=24), "multiple of 16"),
        (lambda: product(dtype=torch.float16), "bfloat16 or float32"),
        (lambda: many(torch.zeros(8, 8)[:, ::2]), "columns of weight 0 must be adjacent"),
        (lambda: many(torch.zeros(4, 4), torch.zeros(8, 8, dtype=torch.uint8)[::2, ::2]), "codes of weight 0"),
    ],
)
def test_what_the_kernels_cannot_take_is_named(call, message):
    with pytest.raises(KernelError, match=message):
        call()


def product(depth=128, dtype=torch.bfloat16):
    codes = torch.zeros(4, depth, dtype=torch.uint8)
    return cuda.multiply_blocks(codes, torch.zeros(4, 1), codes, torch.zeros(1, 1), None, dtype)


def many(w, q=None):
    q = torch.zeros(w.shape, dtype=torch.uint8) if q is None else q
    return cuda.quantize_many([w], [q], [torch.zeros(1, 1)], BLOCK, 1e-10, False)


def test_nothing_is_launched_for_nothing(emulator):
    empty = torch.zeros(0, 128).bfloat16()
    assert cuda.quantize_blocks(empty, BLOCK, 1e-10, False)[1].shape == (0, 1)
    assert cuda.quantize_groups(empty, 128, 1e-4, False, False)[1].shape == (0, 1)
    assert cuda.dequantize_blocks(empty.to(torch.uint8), torch.zeros(0, 1), BLOCK, torch.bfloat16).shape == (0, 128)
    assert np.prod(product().shape) == 16
    assert emulator.launches == 1
