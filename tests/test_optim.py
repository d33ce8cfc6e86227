"""The optimiser does the same whatever ranks its matrices lie on."""

import pytest
import torch
import torch.distributed as dist
from distributed import run_ranks
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import lay_out, local_of, random_gradients, tiny_model

from glmcore.model.parallel.placement import Box, local_part
from glmcore.train.assignment import Stack, assign
from glmcore.train.config import OptimizerConfig
from glmcore.train.muon import orthogonalize
from glmcore.train.optim import Optimizer

CONFIG = OptimizerConfig(max_grad_norm=0.5)
UNEVEN = {"n_routed_experts": 6, "hidden_size": 40, "intermediate_size": 56}
"""Sizes that four ranks cannot share out evenly."""


def stepped_alone(steps: int, **fields: object) -> tuple[dict, list[float]]:
    """What one process comes to."""
    model = tiny_model(**fields)
    alone, _ = dist.new_subgroups(1)
    optimizer = Optimizer(model, CONFIG, group=alone)
    norms = []
    for step in range(steps):
        for name, grad in random_gradients(model, step).items():
            model.get_parameter(name).grad = grad
        norms.append(optimizer.step(0.01 * (step + 1)))
    return {**dict(model.named_parameters()), **optimizer.state_tensors()}, norms


def largest_difference_from_one_process(rank: int, layout: str, num_ranks: int, fields: dict) -> dict:
    expected, norms_alone = stepped_alone(3, **fields)
    whole = tiny_model(**fields)
    model = lay_out(layout, num_ranks, rank, **fields)
    optimizer = Optimizer(model, CONFIG)
    norms = []
    for step in range(3):
        gradients = random_gradients(whole, step)
        for name, parameter in model.named_parameters():
            parameter.grad = local_of(gradients[name], parameter)
        norms.append(optimizer.step(0.01 * (step + 1)))
    ours = {**dict(model.named_parameters()), **optimizer.state_tensors()}
    errors, ragged = {}, {}
    for name, tensor in ours.items():
        mine, theirs = local_part(tensor.detach()), local_part(local_of(expected[name].detach(), tensor))
        if not torch.equal(mine, theirs):
            relative = float(((mine - theirs) / theirs).abs().max())
            rule = name.removeprefix("mean.").removeprefix("square.")
            (ragged if rule in optimizer.adam.parameters and mine.numel() % 16 else errors)[name] = relative
    sent = 0 if optimizer.muon.exchange is None else optimizer.muon.exchange.sent_elements / 3
    matrices = sum(
        parameter.numel() for name, parameter in whole.named_parameters() if name in optimizer.muon.parameters
    )
    return {
        "norms": norms,
        "alone": norms_alone,
        "errors": errors,
        "ragged": ragged,
        "sent": sent,
        "matrices": matrices,
    }


@pytest.mark.parametrize(
    ("num_ranks", "layout", "fields"),
    [
        (2, "plain", {}),
        (2, "fsdp", UNEVEN),
        (2, "pipeline", {}),
        (4, "fsdp", {}),
        (4, "hsdp", {}),
        (4, "tensor", {}),
        (4, "expert", UNEVEN),
        (4, "pipeline", {}),
    ],
)
def test_updates_are_those_of_one_process_bit_for_bit(num_ranks, layout, fields):
    for result in run_ranks(num_ranks, largest_difference_from_one_process, layout, num_ranks, fields):
        assert result["norms"] == pytest.approx(result["alone"], rel=1e-8)  # see global_norm
        assert result["errors"] == {}
        # The second moment is a sum of positive terms, off by one unit in the last place for each of the three steps;
        # half of that goes through the root into steps that are smaller than the parameters.
        assert max(result["ragged"].values(), default=0) <= 3 * 2**-23


def sent_elements(rank: int, layout: str, num_ranks: int) -> tuple[int, int]:
    """What Muon sends in a step, and the elements of its matrices."""
    model = lay_out(layout, num_ranks, rank)
    optimizer = Optimizer(model, CONFIG)
    gradients = random_gradients(tiny_model(), 0)
    for name, parameter in model.named_parameters():
        parameter.grad = local_of(gradients[name], parameter)
    optimizer.step(0.01)
    assert optimizer.muon.exchange is not None
    return optimizer.muon.exchange.sent_elements, sum(p.numel() for p in optimizer.muon.parameters.values())


@pytest.mark.parametrize("layout", ["fsdp", "hsdp", "tensor"])
def test_ranks_send_a_fraction_of_what_gathering_every_matrix_everywhere_takes(layout):
    results = run_ranks(4, sent_elements, layout, 4)
    matrices = results[0][1]
    gathered = 3 * matrices  # all ranks together, in an all-gather: each quarter goes to the three others
    experts = sum(parameter.numel() for name, parameter in tiny_model().named_parameters() if "mlp.experts" in name)
    total = sum(sent for sent, _ in results)
    # Shards go to their owner and back: at most twice the matrices that lie in shards; whole experts stay where they are.
    # Replicas, which tensor ranks are of what is not cut for them, need each other's results too.
    bound = 2 * (matrices - experts) + (0 if layout == "fsdp" else matrices)
    assert 0 < total <= bound < gathered
    assert max(sent for sent, _ in results) <= 0.5 * bound  # an owner answers for whole matrices, evenly shared


@settings(deadline=None, max_examples=60)
@given(
    slabs=st.integers(1, 9),
    rows=st.integers(1, 12),
    columns=st.integers(1, 9),
    row_cuts=st.integers(1, 4),
    column_cuts=st.integers(1, 3),
    replicas=st.integers(1, 3),
)
def test_every_matrix_has_one_owner_and_work_is_shared(slabs, rows, columns, row_cuts, column_cuts, replicas):
    def bounds(length: int, parts: int) -> list[tuple[int, int]]:
        step = -(-length // parts)
        return [(min(i * step, length), min((i + 1) * step, length)) for i in range(parts)]

    grid = [
        Box((0, a, c), (slabs, b - a, d - c))
        for a, b in bounds(rows, row_cuts)
        for c, d in bounds(columns, column_cuts)
    ]
    held = {"w": grid * replicas}
    stack = Stack((slabs, rows, columns))
    units = assign({"w": stack}, held, len(grid) * replicas)
    assert [unit.box.start[0] for unit in units] == sorted({unit.box.start[0] for unit in units})
    assert sum(unit.box.size[0] for unit in units) == slabs
    assert all(unit.box.size[1:] == (rows, columns) for unit in units)
    if len([box for box in grid if box.numel]) > 1 or replicas > 1:
        most = max(sum(u.box.size[0] for u in units if u.owner == owner) for owner in {u.owner for u in units})
        workers = len(held["w"]) if len([box for box in grid if box.numel]) > 1 else replicas
        assert most <= -(-slabs // min(workers, slabs))


@pytest.mark.parametrize("shape", [(24, 16), (16, 24), (16, 16)])
def test_muon_equals_the_one_of_pytorch(shape):
    ours, theirs = torch.nn.Linear(*shape, bias=False), torch.nn.Linear(*shape, bias=False)
    theirs.load_state_dict(ours.state_dict())
    optimizer = Optimizer(ours, OptimizerConfig(max_grad_norm=1e9, newton_schulz="bfloat16"))
    reference = torch.optim.Muon(theirs.parameters(), weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for step in range(4):
        gradient = torch.randn(shape[::-1], generator=torch.Generator().manual_seed(step))
        ours.weight.grad, theirs.weight.grad = gradient.clone(), gradient.clone()
        reference.param_groups[0]["lr"] = 0.01
        before = ours.weight.detach().clone()
        optimizer.step(0.01)
        reference.step()
        update, difference = ((ours.weight - other).detach().norm() for other in (before, theirs.weight))
        # Its momentum is an average, (1 - 0.95) of ours: a factor that orthogonalising forgets, but in float32 it rounds
        # otherwise, and so may bfloat16 then. Each of five steps of products rounds to 2^-9 of values up to 1.2 and the
        # quintic amplifies by at most 3.4: some per cent of an update.
        assert float(difference) <= 0.05 * (step + 1) * float(update)


def test_bfloat16_orthogonalises_to_its_own_precision():
    matrices = torch.randn(4, 32, 48)
    exact, rounded = orthogonalize(matrices), orthogonalize(matrices.bfloat16()).float()
    # As above; singular values stay in the band of the quintic, some 0.7 to 1.2.
    assert float((exact - rounded).norm() / exact.norm()) < 0.05
    values = torch.linalg.svdvals(rounded)
    assert 0.6 < float(values.min()) < float(values.max()) < 1.3


@pytest.mark.parametrize("shape", [(64, 128), (128, 64), (17, 33), (3, 5), (48, 48)])
def test_a_matrix_gets_the_same_bits_in_a_batch_of_any_size(shape):
    matrices = torch.randn(20, *shape)
    whole = orthogonalize(matrices)
    for start, size in ((0, 1), (3, 2), (5, 7), (19, 1)):
        assert torch.equal(orthogonalize(matrices[start : start + size].clone()), whole[start : start + size])
