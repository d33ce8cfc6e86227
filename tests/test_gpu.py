"""The kernels on a card, beside their twins. `make gpu-test` runs this where there is one."""

import numpy as np
import pytest
import torch
from oracles import attention
from oracles import fp8_product as oracle

from glmcore import kernels
from glmcore.errors import ConfigError, Fp8Error
from glmcore.fp8 import (
    Float8Linear,
    cuda,
    dequantize_blocks,
    expert_stack,
    ops,
    quantize_blocks,
    quantize_groups,
    quantize_many,
    torch_products,
)
from glmcore.model.documents import attend_within_documents
from glmcore.model.layout import DocumentLayout
from glmcore.model.runs import Runs, attend, attend_backward

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not kernels.is_available(), reason="needs an NVIDIA GPU (compute capability 8.0) and cuda.core"),
]

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def random_matrix(shape, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator) * torch.exp(3 * torch.randn(shape, generator=generator))
    return values.clamp(-6e4, 6e4).to(dtype)


def codes(q):
    return q.cpu().view(torch.uint8)


def assert_same(got, expected):
    assert torch.equal(codes(got[0]), codes(expected[0]))
    assert torch.equal(got[1].cpu(), expected[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (129, 131), (256, 392), (2, 130, 264)], ids=lambda s: f"small{s}")
def test_blocks_are_bit_equal_to_rust(shape, dtype):
    w = random_matrix(shape, dtype)
    for block in ((128, 128), (16, 24)):
        for scale_format in ("float32", "ue8m0"):
            assert_same(quantize_blocks(w.cuda(), block, scale_format), quantize_blocks(w, block, scale_format))


def test_large_blocks_are_bit_equal_to_rust():
    w = random_matrix((4096, 5120), torch.bfloat16)
    assert_same(quantize_blocks(w.cuda()), quantize_blocks(w))


def test_every_bfloat16_value_is_bit_equal_to_rust_small():
    w = torch.arange(65_536).to(torch.int32).to(torch.uint16).view(torch.bfloat16).reshape(512, 128)
    for values in (w, w.flatten()[torch.randperm(65_536)].reshape(512, 128)):
        on_gpu = values.cuda()
        assert_same(quantize_groups(on_gpu, not_finite="propagate"), quantize_groups(values, not_finite="propagate"))
        assert_same(quantize_blocks(on_gpu, not_finite="propagate"), quantize_blocks(values, not_finite="propagate"))
    with pytest.raises(Fp8Error, match="row 255, column 0 is not finite"):
        quantize_blocks(w.cuda())


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_come_back_bit_equal_to_rust_small(dtype):
    q = torch.arange(256, dtype=torch.uint8).repeat(33, 1).view(torch.float8_e4m3fn)
    scale = torch.rand(1, 2) + 0.1
    got = dequantize_blocks(q.cuda(), scale.cuda(), dtype=dtype).cpu()
    bits = torch.int32 if dtype == torch.float32 else torch.int16
    assert torch.equal(got.view(bits), dequantize_blocks(q, scale, dtype=dtype).view(bits))


def test_many_weights_go_where_they_are_told_small():
    gate, up = random_matrix((3, 256, 264), torch.bfloat16), random_matrix((3, 256, 264), torch.bfloat16, 1)
    q, scale, views = expert_stack(3, (256, 256), 264, "cuda")
    matrices = [matrix.cuda() for pair in zip(gate, up, strict=True) for matrix in pair]
    transposed = torch.empty(264, 256, dtype=torch.float8_e4m3fn, device="cuda").t()
    its_scale = torch.empty(2, 3, device="cuda")
    out = [view for expert in views for view in expert]
    quantize_many([*matrices, gate[0].cuda()], out=[*out, (transposed, its_scale)])
    assert_same((q, scale), quantize_blocks(torch.cat((gate, up), dim=1)))
    assert_same((transposed, its_scale), quantize_blocks(gate[0].contiguous()))


def product_error(got, a, a_scale, b, b_scale):
    """Largest error of a product as a share of what its sums' magnitudes allow; see `products`."""
    exact = oracle.multiply_blocks(a, a_scale, b, b_scale)
    wide = dequantize_blocks(a, a_scale, (1, 128)).abs() @ dequantize_blocks(b, b_scale).abs().T
    accumulated = 2.0**-12 if torch.cuda.get_device_capability() == (9, 0) else 2.0**-16
    allowed = accumulated * wide + torch.finfo(got.dtype).eps * exact.abs()
    return ((got.cpu().float() - exact).abs() / allowed.clamp(min=1e-30)).max().item()


@pytest.mark.parametrize("sizes", [[1], [200], [0, 70, 0, 64], [3] * 40], ids=lambda s: f"small{len(s)}")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_products_are_within_the_rounding_of_tensor_cores(sizes, dtype):
    a, a_scale = quantize_groups(random_matrix((sum(sizes), 400), torch.bfloat16))
    b, b_scale = quantize_blocks(random_matrix((len(sizes), 264, 400), torch.bfloat16, 1))
    ends = torch.tensor(sizes).cumsum(0).to(torch.int32)
    on_gpu = [codes(a).cuda(), a_scale.cuda(), codes(b).cuda(), b_scale.cuda()]
    got = cuda.multiply_blocks(*on_gpu, ends.cuda(), dtype)
    start = 0
    for e, end in enumerate(ends.tolist()):
        if start < end:
            assert product_error(got[start:end], a[start:end], a_scale[start:end], b[e], b_scale[e]) < 1
        start = end


def test_torchs_own_products_agree_where_there_are_any():
    x = random_matrix((96, 512), torch.bfloat16)
    b, b_scale = quantize_blocks(random_matrix((256, 512), torch.bfloat16, 1))
    if not torch_products.fits(x.cuda(), b.cuda()):
        pytest.skip("this card and build of torch have no block-wise FP8 product")
    a, a_scale = quantize_groups(x)
    got = ops.fp8_linear(x.cuda(), codes(b).cuda(), b_scale.cuda())
    assert product_error(got, a, a_scale, b, b_scale) < 1


def test_a_layer_runs_in_a_cuda_graph_and_compiled():
    layer = Float8Linear.from_linear(torch.nn.Linear(512, 256, dtype=torch.bfloat16)).cuda()
    x = torch.randn(16, 512, dtype=torch.bfloat16, device="cuda")
    expected = layer(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = layer(x)
    graph.replay()
    assert torch.equal(y, expected)
    assert torch.equal(torch.compile(layer, fullgraph=True)(x), expected)


@pytest.mark.parametrize("name", ["quantize_blocks", "quantize_groups", "fp8_linear"])
def test_torch_finds_no_fault(name):
    weight, scale = quantize_blocks(torch.randn(256, 256))
    x = torch.randn(8, 256, dtype=torch.bfloat16, device="cuda")
    arguments = {
        "quantize_blocks": (x, 128, 128, 1e-10, False),
        "quantize_groups": (x, 128, 1e-4, False, True),
        "fp8_linear": (x, codes(weight).cuda(), scale.cuda()),
    }
    torch.library.opcheck(getattr(torch.ops.glmcore, name).default, arguments[name])


@pytest.mark.parametrize("runs", [[(300, 0)], [(1, 700), (128, 128), (77, 0), (200, 1000)]], ids=["small1", "small4"])
def test_attention_of_runs_and_its_gradients_are_within_the_rounding_of_bfloat16(runs):
    generator = torch.Generator().manual_seed(0)
    num_queries, num_keys = [own for own, _ in runs], [own + before for own, before in runs]
    sizes = [(sum(num_queries), 12), (sum(num_keys), 2), (sum(num_keys), 2), (sum(num_queries), 12)]
    *inputs, grad = (torch.randn(*size, 128, generator=generator).bfloat16() for size in sizes)
    exact = [x.double().requires_grad_() for x in inputs]
    expected = attention.attention_of_runs(*exact, num_queries, num_keys)
    expected_grads = torch.autograd.grad(expected, exact, grad.double())
    plan = Runs.of(np.array(num_queries), np.array(num_keys)).to(torch.device("cuda"))
    on_gpu = [x.cuda() for x in inputs]
    mixed, log_sum = attend(*on_gpu, plan)
    grads = attend_backward(grad.cuda(), *on_gpu, mixed, log_sum, plan)
    for got, true in zip((mixed, *grads), (expected, *expected_grads), strict=True):
        # Shares of keys, results and inner products of gradients are rounded to 2^-9 each; errors partly cancel.
        assert (got.cpu() - true).norm() < 2**-7 * true.norm()


def test_attention_of_runs_refuses_float32_on_a_gpu():
    x = torch.zeros(4, 2, 64, device="cuda")
    with pytest.raises(ConfigError, match=r"bfloat16 or float16, not torch\.float32"):
        attend(x, x, x, Runs.of(np.array([4]), np.array([4])).to(x.device))


@pytest.mark.parametrize("lengths", [[40, 9, 200, 1], [512] * 4], ids=str)
def test_attention_within_documents_agrees_with_the_cpu(lengths):
    layout = DocumentLayout.from_cu_seqlens(np.concatenate(([0], np.cumsum(lengths))))
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(sum(lengths), heads, 128, generator=generator).bfloat16() for heads in (12, 2, 2, 12)]
    results = []
    for device in ("cpu", "cuda"):
        query, key, value, grad = (part.to(device) for part in parts)
        own = [part.requires_grad_() for part in (query, key, value)]
        out = attend_within_documents(*own, layout.to(torch.device(device)))
        results.append([out.detach(), *torch.autograd.grad(out, own, grad)])
    for on_cpu, on_gpu in zip(*results, strict=True):
        # Both compute in float32 from bfloat16; the GPU also rounds weights to bfloat16 before its products, 2^-9 each.
        allowed = 2**-6 * float(on_cpu.float().abs().max())
        torch.testing.assert_close(on_gpu.cpu().float(), on_cpu.float(), rtol=0, atol=allowed)
