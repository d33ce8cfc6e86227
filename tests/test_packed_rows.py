"""Packed documents are bit for bit as if each were alone, in float64."""

from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_model import packed, random_model
from torch import Tensor
from torch.overrides import TorchFunctionMode

from glmcore.model.layout import BUCKET


class RowByRow(TorchFunctionMode):
    """Matrix products in which a row does not depend on what other rows there are.

    A BLAS gives no such promise: MKL sums the last rows of a matrix, up to three, in another order than the rest, so
    which rows those are depends on the number of all tokens. That is the library's, a few 1e-16 of the values; this mode
    takes it away so that everything else of the model can be held to the bit.
    """

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is F.linear:
            return product(*args, **kwargs)
        if func in (torch.bmm, Tensor.bmm, torch.matmul, Tensor.matmul, Tensor.__matmul__):
            return product(args[0], args[1].transpose(-2, -1))
        return func(*args, **kwargs)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias`, each value a sum of its own, in the order of a contiguous row."""
    y = (x[..., None, :] * weight[..., None, :, :]).sum(-1)
    return y if bias is None else y + bias


def run(model, ids, positions, layout):
    output = model(ids, positions, layout, with_mtp=True)
    return (
        model.logits(output.hidden),
        model.logits(output.mtp_hidden),
        *(routing.weight for routing in output.routings),
    )


@settings(deadline=None, max_examples=25)
@given(
    lengths=st.lists(st.integers(1, 2 * BUCKET + 3), min_size=1, max_size=6),
    fields=st.sampled_from(
        [{}, {"use_qk_norm": False, "n_group": 4, "topk_group": 2}, {"norm_topk_prob": False, "n_shared_experts": 2}]
    ),
)
@example(lengths=[1, BUCKET, BUCKET + 1, 2 * BUCKET, 1], fields={})
def test_packed_documents_are_as_if_alone_to_the_bit(lengths, fields):
    # Widths are multiples of 16, as in every published model: PyTorch computes the last values of a tensor, fewer than 16
    # in float64, by other code than those before, and its sigmoid of the same number differs there in the last bit.
    model = random_model(torch.float64, n_routed_experts=16, **fields)
    ids, positions, layout = packed(lengths)
    with torch.no_grad(), RowByRow():
        together = run(model, ids, positions, layout)
        start = 0
        for length in lengths:
            rows = slice(start, start + length)
            alone = run(model, ids[rows], positions[rows], packed([length])[2])
            assert all(torch.equal(part[rows], other) for part, other in zip(together, alone, strict=True))
            start += length


def test_products_row_by_row_are_products():
    x, weight, bias = torch.randn(7, 9), torch.randn(5, 9), torch.randn(5)
    torch.testing.assert_close(
        product(x.double(), weight.double(), bias.double()), F.linear(x.double(), weight.double(), bias.double())
    )
    with RowByRow():
        stack = torch.bmm(x[None].double(), weight.T[None].double())
    torch.testing.assert_close(stack[0], x.double() @ weight.T.double())
