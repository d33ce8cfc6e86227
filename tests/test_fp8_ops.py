"""The operators on the CPU, under torch's own checks and compiled, and the layers made of them."""

import pytest
import torch
from oracles import fp8_product as oracle
from torch import nn

from glmcore.errors import Fp8Error
from glmcore.fp8 import (
    Float8Experts,
    Float8Linear,
    dequantize_blocks,
    expert_stack,
    ops,
    quantize_blocks,
    quantize_groups,
    quantize_many,
)

OPS = torch.ops.glmcore


def codes(q):
    return q.view(torch.uint8)


def many_arguments():
    weights = [torch.randn(40, 48), torch.randn(20, 8).bfloat16()]
    q = [torch.zeros(48, 40, dtype=torch.uint8).t(), torch.zeros(20, 8, dtype=torch.uint8)]
    return weights, q, [torch.zeros(3, 3), torch.zeros(2, 1)], 16, 16, 1e-10, False


def calls():
    weight, scale = quantize_blocks(torch.randn(3, 130, 144))
    x = torch.randn(7, 144, dtype=torch.bfloat16)
    ends = torch.tensor([2, 2, 7], dtype=torch.int32)
    return {
        "quantize_blocks": (torch.randn(2, 40, 48), 16, 16, 1e-10, True),
        "quantize_groups": (x, 128, 1e-4, False, True),
        "dequantize_blocks": (codes(weight), scale, 128, 128, torch.bfloat16),
        "quantize_many": many_arguments(),
        "fp8_linear": (x, codes(weight[1]), scale[1].contiguous()),
        "fp8_grouped_linear": (x, codes(weight), scale, ends),
    }


@pytest.mark.parametrize("name", list(calls()))
def test_torch_finds_no_fault(name):
    torch.library.opcheck(getattr(OPS, name).default, calls()[name])


@pytest.mark.parametrize("name", [name for name in calls() if name != "quantize_many"])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_they_give_the_same(name, backend):
    torch.compiler.reset()  # each case compiles the same function anew
    op, arguments = getattr(OPS, name), calls()[name]
    compiled = torch.compile(lambda *args: op(*args), backend=backend, fullgraph=True)
    got, expected = compiled(*arguments), op(*arguments)
    pairs = zip(got, expected, strict=True) if isinstance(got, tuple) else [(got, expected)]
    for one, other in pairs:
        assert one.dtype == other.dtype
        assert one.stride() == other.stride()
        assert torch.equal(one, other)


def test_compiled_into_given_memory_is_the_same():
    torch.manual_seed(3)
    arguments, others = many_arguments(), many_arguments()
    others = (arguments[0], *others[1:])
    bad = torch.compile(lambda *args: OPS.quantize_many(*args), backend="aot_eager", fullgraph=True)(*arguments)
    assert torch.equal(bad, OPS.quantize_many(*others))
    for one, other in zip([*arguments[1], *arguments[2]], [*others[1], *others[2]], strict=True):
        assert torch.equal(one, other)


def test_places_of_what_is_not_finite_are_told():
    w = torch.randn(2, 40, 48)
    w[1, 5, 7], w[1, 5, 9] = float("nan"), float("inf")
    _, _, bad = ops.quantize_blocks(w, 16, 16, 1e-10, False)
    assert bad.tolist() == [ops.ALL_FINITE, 5 * 48 + 7]
    with pytest.raises(Fp8Error, match="matrix 1, value at row 5, column 7 is not finite"):
        ops.check_finite(bad, 48)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_product_is_within_the_rounding_of_its_sums_of_the_oracle(dtype):
    x = torch.randn(9, 400, dtype=dtype)
    weight, scale = quantize_blocks(torch.randn(140, 400, dtype=dtype))
    a, a_scale = quantize_groups(x)
    expected = oracle.multiply_blocks(a, a_scale, weight, scale)
    got = ops.fp8_linear(x, codes(weight), scale)
    assert got.dtype == dtype
    # 4 slices, each a float32 sum of 128 products in another order: 128 * 2**-24 of the sum of magnitudes.
    wide = dequantize_blocks(a, a_scale, (1, 128)).abs() @ dequantize_blocks(weight, scale).abs().T
    tolerance = 128 * 2.0**-24 * wide + torch.finfo(dtype).eps * expected.abs()
    assert ((got.float() - expected).abs() <= tolerance).all()
    grouped = ops.fp8_grouped_linear(x, codes(weight)[None], scale[None], torch.tensor([9], dtype=torch.int32))
    assert torch.equal(grouped, got)


def test_a_layer_is_near_the_layer_it_is_made_of():
    linear = nn.Linear(300, 260)
    layer = Float8Linear.from_linear(linear)
    x = torch.randn(2, 5, 300)
    with torch.no_grad():
        exact = linear(x)
        error = (layer(x) - exact).norm() / exact.norm()
    assert 0.005 < error < 0.05  # two roundings to 4 significant bits, some 2.6 % each at the most
    assert list(layer.state_dict()) == ["bias", "weight", "weight_scale_inv"]
    again = Float8Linear(layer.weight, layer.weight_scale_inv, linear.bias)
    assert torch.equal(again(x), layer(x))
    with pytest.raises(Fp8Error, match="float32 scales of its 128x128 blocks"):
        Float8Linear(layer.weight, layer.weight_scale_inv[:1])


@pytest.mark.parametrize("width", [128, 48])
def test_experts_hold_the_blocks_that_a_checkpoint_has(width):
    gate_up, down = torch.randn(3, 2 * width, 64), torch.randn(3, 64, width)
    experts = Float8Experts.from_stacks(gate_up, down)
    ends = torch.tensor([4, 4, 6], dtype=torch.int32)
    rows = torch.randn(6, 64)
    got = experts(rows, ends)
    expected = []
    for e, part in ((0, rows[:4]), (2, rows[4:])):
        gate, up, low = (Float8Linear(*quantize_blocks(w.contiguous())) for w in (*gate_up[e].chunk(2), down[e]))
        expected.append(low(torch.nn.functional.silu(gate(part)) * up(part)))
    torch.testing.assert_close(got, torch.cat(expected), rtol=0, atol=1e-4)
    held = experts.held["2.up_proj"]
    assert torch.equal(codes(held.q), codes(quantize_blocks(gate_up[2, width:].contiguous())[0]))
    held.copy_rows(0, *quantize_blocks(gate_up[2, :width].contiguous()))
    gate = dequantize_blocks(*quantize_blocks(gate_up[2, :width].contiguous()), dtype=torch.bfloat16)
    assert torch.equal(held.values(), gate)
    with pytest.raises(Fp8Error, match="do not fit"):
        held.copy_rows(64, *quantize_blocks(torch.randn(64, 64)))


def test_many_weights_go_into_stacks_of_experts_and_transposed_memory():
    gate, up = torch.randn(2, 128, 64), torch.randn(2, 30, 64)
    q, scale, views = expert_stack(2, (128, 30), 64)
    matrices = [matrix for pair in zip(gate, up, strict=True) for matrix in pair]
    assert quantize_many(matrices, out=[view for expert in views for view in expert])[0][0] is views[0][0][0]
    expected_q, expected_scale = quantize_blocks(torch.cat((gate, up), dim=1))
    assert torch.equal(codes(q), codes(expected_q))
    assert torch.equal(scale, expected_scale)
    with pytest.raises(Fp8Error, match="multiples of 128"):
        expert_stack(2, (30, 30), 64)
    assert quantize_many([]) == []
    [(own_q, own_scale)] = quantize_many([gate[0]], scale_format="ue8m0")
    expected_q, expected_scale = quantize_blocks(gate[0].contiguous(), scale_format="ue8m0")
    assert torch.equal(codes(own_q), codes(expected_q))
    assert torch.equal(own_scale, expected_scale)


@pytest.mark.parametrize(
    ("weights", "out", "message"),
    [
        ([torch.zeros(4)], None, "weight 0 must be a matrix of floats"),
        ([torch.ones(4, 4), torch.full((4, 4), torch.nan)], None, "weight 1: value at row 0, column 0 is not finite"),
        ([torch.zeros(4, 4)], [], "a pair for each of 1 weights"),
        ([torch.zeros(4, 4)], [(torch.zeros(4, 4), torch.zeros(1, 1))], "codes of weight 0 must be float8_e4m3fn"),
        (
            [torch.zeros(4, 4)],
            [(torch.zeros(4, 4).to(torch.float8_e4m3fn), torch.zeros(1, 2))],
            "scales of weight 0 must be float32",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(weights, out, message):
    with pytest.raises(Fp8Error, match=message):
        quantize_many(weights, out)
