"""Attention within documents: the Rust core beside padded dense attention, its twin, and each document alone."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.profiler import profile

from glmcore.model.attention_ops import attend_within_documents as operator
from glmcore.model.documents import attend_padded, attend_within_documents
from glmcore.model.layout import BUCKET, DocumentLayout, PaddedLayout

LENGTHS = st.lists(st.integers(0, 150), min_size=1, max_size=6).filter(sum)


def layout_of(lengths) -> DocumentLayout:
    return DocumentLayout.from_cu_seqlens(np.concatenate(([0], np.cumsum(lengths))))


def random_parts(num_tokens, dtype=torch.float64, heads=(4, 2), channels=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(num_tokens, count, channels, generator=generator).to(dtype).requires_grad_()
        for count in (heads[0], heads[1], heads[1])
    ]


def with_gradients(attend, parts, layout):
    """Result and gradients of a sum with fixed weights."""
    for part in parts:
        part.grad = None
    out = attend(*parts, layout)
    weight = torch.cos(torch.arange(out.numel(), dtype=torch.float64)).view_as(out).to(out.dtype)
    out.backward(weight)
    return [out.detach(), *(part.grad for part in parts)]


@settings(deadline=None, max_examples=25)
@given(lengths=LENGTHS, heads=st.sampled_from([(1, 1), (4, 2), (6, 2)]), channels=st.sampled_from([8, 32, 40]))
def test_the_core_and_the_padded_twin_agree(lengths, heads, channels):
    layout = layout_of(lengths)
    # float32: sums of up to 150 terms and of 40 channels of size about 1, 2^-24 each.
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-4)):
        parts = random_parts(sum(lengths), dtype, heads, channels)
        found = with_gradients(attend_within_documents, parts, layout)
        for one, other in zip(found, with_gradients(attend_padded, parts, layout), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


@settings(deadline=None, max_examples=15)
@given(lengths=LENGTHS, dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
def test_a_document_has_the_same_bits_alone_and_packed(lengths, dtype):
    parts = random_parts(sum(lengths), dtype)
    layout = layout_of(lengths)
    together = attend_within_documents(*parts, layout)
    grads = torch.autograd.grad(together.square().sum(), parts)
    for start, length in zip(layout.cu_seqlens.tolist(), lengths, strict=False):
        rows = slice(start, start + length)
        own = [part[rows].detach().requires_grad_() for part in parts]
        alone = attend_within_documents(*own, layout_of([length]))
        assert torch.equal(together[rows], alone)
        for grad, its in zip(grads, torch.autograd.grad(alone.square().sum(), own), strict=True):
            assert torch.equal(grad[rows], its)


def test_threads_change_no_bit():
    parts = random_parts(333, torch.float32)
    layout = layout_of([200, 33, 100])
    one = with_gradients(attend_within_documents, parts, layout)
    torch.set_num_threads(3)
    assert all(map(torch.equal, one, with_gradients(attend_within_documents, parts, layout)))


def test_bfloat16_is_as_exact_as_its_numbers():
    parts = random_parts(300, torch.bfloat16, channels=64)
    wide = [part.detach().double().requires_grad_() for part in parts]
    layout = layout_of([170, 130])
    exact, core, torchs = (
        with_gradients(attend, chosen, layout)
        for attend, chosen in (
            (attend_padded, wide),
            (attend_within_documents, parts),
            (attend_padded, parts),
        )
    )
    for reference, ours, theirs in zip(exact, core, torchs, strict=True):
        size = float(reference.abs().max())
        error, its = (float((part.double() - reference).abs().max()) / size for part in (ours, theirs))
        # Half a unit of 8 bits, and in the gradients once more that of the result that they are computed from.
        assert error < 2**-7
        assert error < 2 * its


def test_torch_finds_no_fault_with_the_operator():
    parts = random_parts(50, torch.float64)
    torch.library.opcheck(operator.default if hasattr(operator, "default") else operator, (*parts, layout_of([30, 20]).cu_seqlens))


def test_long_documents_hold_nothing_of_their_length_squared():
    length = 4096
    parts = random_parts(length, torch.float32, heads=(2, 1), channels=8)
    with profile(profile_memory=True) as profiled:
        attend_within_documents(*parts, layout_of([length])).sum().backward()
    allocated = sum(max(event.self_cpu_memory_usage, 0) for event in profiled.key_averages())
    assert allocated < length * length  # a quarter of the scores of one head, in bytes


def test_wrong_arguments_are_refused():
    query, key, value = (part.detach() for part in random_parts(10))
    with pytest.raises(ValueError, match="query has 640 values, it needs 704"):
        operator(query, key, value, torch.tensor([0, 11], dtype=torch.int32))
    with pytest.raises(ValueError, match="cu_seqlens must start at 0 and never fall"):
        operator(query, key, value, torch.tensor([0, 12, 10], dtype=torch.int32))


@given(lengths=st.lists(st.integers(0, 3 * BUCKET), min_size=1, max_size=6))
def test_the_padded_plan_holds_each_token_once(lengths):
    plan = PaddedLayout.from_lengths(np.array(lengths), torch.device("cpu"))
    assert torch.equal(plan.slot_token[plan.token_slot], torch.arange(sum(lengths)))
    assert int((~plan.slot_is_padding).sum()) == sum(lengths)
    assert sum(bucket.num_documents * bucket.length for bucket in plan.buckets) == len(plan.slot_token)
    assert len(plan.slot_token) - sum(lengths) < BUCKET * len(lengths)


def test_causal_attention_is_what_it_is():
    query, key, value = random_parts(9, heads=(2, 2))
    expected = F.scaled_dot_product_attention(
        *(part.transpose(0, 1) for part in (query, key, value)), is_causal=True
    ).transpose(0, 1)
    torch.testing.assert_close(attend_within_documents(query, key, value, layout_of([9])), expected)
