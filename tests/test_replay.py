"""Routing replay in the model: the choice is replaced, and nothing else."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_model import packed, random_model

from glmcore.model.glm import Glm, Output
from glmcore.model.moe import Router, expert_load
from glmcore.model.replay import UNKNOWN, replay_choice
from glmcore.model.tree import TreeLayout


def experts_of(output: Output) -> torch.Tensor:
    return torch.stack([routing.expert for routing in output.routings], 1)


def gradients(model: Glm, output: Output) -> dict[str, torch.Tensor]:
    model.zero_grad()
    (
        output.hidden * torch.linspace(-1, 1, output.hidden.numel(), dtype=output.hidden.dtype).view_as(output.hidden)
    ).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def shuffled(experts: torch.Tensor) -> torch.Tensor:
    """The same sets in other orders."""
    return experts[..., torch.randperm(experts.shape[-1], generator=torch.Generator().manual_seed(0))]


@pytest.mark.parametrize("mode", ["none", "selective", "full"])
@pytest.mark.parametrize("fields", [{}, {"n_group": 4, "topk_group": 2, "num_experts_per_tok": 3}])
def test_replaying_the_own_choice_in_any_order_changes_no_bit(mode, fields):
    model = random_model(torch.float32, **fields).set_activation_checkpointing(mode)
    ids, positions, layout = packed([9, 5, 12])
    plain = model(ids, positions, layout)
    expected = gradients(model, plain)
    replayed = model(ids, positions, layout, experts=shuffled(experts_of(plain)).to(torch.int16))
    assert torch.equal(replayed.hidden, plain.hidden)
    assert not any(routing.replaced.any() for routing in replayed.routings)
    for name, grad in gradients(model, replayed).items():
        assert torch.equal(grad, expected[name]), name


def test_it_does_so_in_a_forest_too():
    model = random_model(torch.float32)
    parent = np.array([-1, 0, 1, 2, 1, 4, 0, 6])
    layout, positions = TreeLayout.from_parents(parent), torch.tensor([0, 1, 2, 3, 2, 3, 1, 2])
    ids = torch.arange(8)
    plain = model(ids, positions, layout)
    assert torch.equal(model(ids, positions, layout, experts=shuffled(experts_of(plain))).hidden, plain.hidden)


@settings(max_examples=50)
@given(data=st.data())
def test_tokens_get_the_recorded_experts_unless_nothing_is_known_of_them(data):
    row = st.permutations(range(6)).map(lambda all_of_them: all_of_them[:3])
    tokens = data.draw(st.integers(1, 6))
    own = torch.tensor([data.draw(row) for _ in range(tokens)])
    recorded = torch.tensor([data.draw(st.one_of(row, st.just([UNKNOWN] * 3))) for _ in range(tokens)])
    used, replaced = replay_choice(own, recorded)
    for mine, theirs, got, differs in zip(
        own.tolist(), recorded.tolist(), used.tolist(), replaced.tolist(), strict=True
    ):
        known = theirs[0] != UNKNOWN
        assert set(got) == set(theirs if known else mine)
        assert differs == (known and set(mine) != set(theirs))
        assert differs or got == mine


def test_the_mixing_weights_and_their_gradient_are_those_of_the_replayed_experts():
    model = random_model()
    router: Router = model.routers[0]
    x = torch.randn(5, model.config.hidden_size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    own = router(x).expert
    recorded = (own + 1) % model.config.n_routed_experts
    recorded[0] = UNKNOWN
    routing = router(x, recorded)
    used = torch.cat([own[:1], recorded[1:]])
    assert torch.equal(routing.expert.sort(-1).values, used.sort(-1).values)
    weight = router.weight.detach().clone().requires_grad_()
    scores = (x @ weight.T).sigmoid()  # the plain twin
    chosen = scores.gather(1, routing.expert)
    expected = model.config.routed_scaling_factor * chosen / chosen.sum(-1, keepdim=True)
    torch.testing.assert_close(routing.weight, expected, rtol=1e-12, atol=1e-12)
    (routing.weight * torch.arange(1.0, 3.0)).sum().backward()
    (expected * torch.arange(1.0, 3.0)).sum().backward()
    torch.testing.assert_close(router.weight.grad, weight.grad, rtol=1e-10, atol=1e-12)
    # Loads are of the experts that worked, so balancing counts what is replayed.
    assert torch.equal(expert_load(routing), torch.bincount(used.flatten(), minlength=model.config.n_routed_experts))
