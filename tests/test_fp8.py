import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import fp8 as oracle

from glmcore.errors import Fp8Error
from glmcore.fp8 import dequantize_blocks, quantize_blocks, quantize_groups

SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 40))
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])


def random_matrix(shape, dtype, seed, spread):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator) * torch.exp(spread * torch.randn(shape, generator=generator))
    values[torch.rand(shape, generator=generator) < 0.1] = 0.0
    return values.clamp(-6e4, 6e4).to(dtype)


@settings(deadline=None, max_examples=80)
@given(
    shape=SHAPES,
    block=st.tuples(st.integers(1, 17), st.integers(1, 17)),
    dtype=DTYPES,
    seed=st.integers(0, 2**31),
    spread=st.sampled_from([0.0, 1.0, 6.0]),
)
def test_blocks_are_bit_equal_to_the_same_arithmetic_in_pytorch(shape, block, dtype, seed, spread):
    w = random_matrix(shape, dtype, seed, spread)
    q, scale = quantize_blocks(w, block=block)
    expected_q, expected_scale = oracle.quantize_blocks(w, block, floor=1e-10)
    assert torch.equal(q.view(torch.uint8), expected_q.view(torch.uint8))
    assert torch.equal(scale, expected_scale)
    back = dequantize_blocks(q, scale, block=block)
    assert torch.equal(back, oracle.dequantize_blocks(q, scale, block))


def test_every_bfloat16_value_is_bit_equal_to_pytorch():
    bits = torch.arange(65_536).to(torch.int32).to(torch.uint16).view(torch.bfloat16)
    finite = bits[bits.isfinite()]
    finite = finite[finite.float().abs() < 1e37]  # PyTorch's quotient of larger ones by the scale is the same
    w = finite.reshape(1, -1)
    q, scale = quantize_blocks(w, block=(1, 1))
    expected_q, expected_scale = oracle.quantize_blocks(w, (1, 1), floor=1e-10)
    assert torch.equal(q.view(torch.uint8), expected_q.view(torch.uint8))
    assert torch.equal(scale, expected_scale)


def test_numpy_and_torch_give_the_same():
    w = np.random.default_rng(0).normal(size=(130, 260)).astype(np.float32)
    q, scale = quantize_blocks(w)
    torch_q, torch_scale = quantize_blocks(torch.from_numpy(w))
    assert (q.dtype, q.shape, scale.shape) == (np.uint8, (130, 260), (2, 3))
    np.testing.assert_array_equal(q, torch_q.view(torch.uint8).numpy())
    np.testing.assert_array_equal(scale, torch_scale.numpy())
    half_q, _ = quantize_blocks(w.astype(np.float16))
    assert half_q.shape == w.shape
    np.testing.assert_allclose(dequantize_blocks(q, scale, dtype=np.float64), w, atol=np.abs(w).max() / 16)


def test_a_stack_is_its_matrices_one_by_one():
    w = torch.randn(3, 20, 30)
    q, scale = quantize_blocks(w, block=(8, 8))
    for e in range(3):
        one_q, one_scale = quantize_blocks(w[e].contiguous(), block=(8, 8))
        assert torch.equal(q[e].view(torch.uint8), one_q.view(torch.uint8))
        assert torch.equal(scale[e], one_scale)
    assert dequantize_blocks(q, scale, block=(8, 8), dtype=torch.bfloat16).shape == w.shape


def test_groups_have_their_own_floor_and_powers_of_two_their_own_rule():
    _, scale = quantize_groups(torch.zeros(2, 256), group=128)
    assert scale.shape == (2, 2)
    assert torch.equal(scale, torch.full((2, 2), 1e-4) / torch.full((2, 2), 448.0))
    _, power = quantize_blocks(torch.randn(64, 64), block=(16, 16), scale_format="ue8m0")
    assert torch.equal(power.log2(), power.log2().round())


@pytest.mark.parametrize(
    ("w", "options", "message"),
    [
        (torch.tensor([[1.0, float("nan")]]), {}, "row 0, column 1 is not finite"),
        (torch.tensor([[1.0], [float("-inf")]]), {}, "row 1, column 0 is not finite"),
        (torch.zeros(4, 4).T[::2], {}, "C-contiguous"),
        (np.zeros((4, 4), np.float32)[:, ::2], {}, "C-contiguous"),
        (torch.zeros(4), {}, "expected a matrix"),
        ([[1.0]], {}, "expected a matrix"),
        (np.zeros((2, 2)), {}, "float32, float16 or bfloat16"),
        (torch.zeros(2, 2), {"block": (0, 1)}, "at least one row"),
        (torch.zeros(2, 2), {"scale_format": "e8"}, "scale_format must be"),
    ],
)
def test_what_cannot_be_quantised_is_named(w, options, message):
    with pytest.raises(Fp8Error, match=message):
        quantize_blocks(w, **options)


def test_scales_that_do_not_fit_are_refused():
    q, scale = quantize_blocks(torch.randn(4, 4), block=(2, 2))
    with pytest.raises(Fp8Error, match="scale_inv has"):
        dequantize_blocks(q, scale[:1], block=(2, 2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_values_come_back_rounded_once(dtype):
    q, scale = quantize_blocks(random_matrix((130, 200), torch.float32, 0, 3.0), block=(64, 64))
    expected = oracle.dequantize_blocks(q, scale, (64, 64)).to(dtype)
    assert torch.equal(dequantize_blocks(q, scale, block=(64, 64), dtype=dtype), expected)
    out = torch.zeros(130, 200, dtype=dtype)
    if dtype == torch.float64:
        with pytest.raises(Fp8Error, match="out must be float32, float16 or bfloat16"):
            dequantize_blocks(q, scale, block=(64, 64), out=out)
    else:
        assert dequantize_blocks(q, scale, block=(64, 64), out=out) is out
        assert torch.equal(out, expected)


def test_nan_and_infinity_may_become_nan_and_leave_their_block_as_it_is():
    w = torch.randn(4, 256, dtype=torch.bfloat16)
    plain_q, plain_scale = quantize_blocks(w)
    w[0, 3], w[1, 200] = float("nan"), float("-inf")
    q, scale = quantize_blocks(w, not_finite="propagate")
    back = dequantize_blocks(q, scale)
    assert back.isnan().nonzero().tolist() == [[0, 3], [1, 200]]
    assert torch.equal(scale, plain_scale)  # neither of them was the largest of its block
    same = ~back.isnan()
    assert torch.equal(q.view(torch.uint8)[same], plain_q.view(torch.uint8)[same])


def test_results_may_go_where_earlier_ones_were():
    first, second = torch.randn(3, 40, 50), torch.randn(3, 40, 50)
    expected = quantize_blocks(second, block=(16, 16))
    out = quantize_blocks(first, block=(16, 16))
    q, scale = quantize_blocks(second, block=(16, 16), out=out)
    assert q is out[0]
    assert scale is out[1]
    assert torch.equal(q.view(torch.uint8), expected[0].view(torch.uint8))
    assert torch.equal(scale, expected[1])
    with pytest.raises(Fp8Error, match="out must be codes"):
        quantize_blocks(second[:2], block=(16, 16), out=out)
