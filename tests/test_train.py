import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ALONE, TINY, batch_of
from hypothesis import given, settings
from hypothesis import strategies as st

from glmcore.data.loader import Source
from glmcore.data.shards import ShardWriter, TokenShards
from glmcore.errors import ConfigError
from glmcore.metrics import MetricLog
from glmcore.model.config import GlmConfig
from glmcore.model.glm import Glm
from glmcore.packing import PackedBatch
from glmcore.train.checkpoint import CheckpointStore, Progress
from glmcore.train.config import (
    BatchConfig,
    CheckpointConfig,
    OptimizerConfig,
    ScheduleConfig,
    StageConfig,
    TrainConfig,
)
from glmcore.train.loop import StageLoop
from glmcore.train.loss import IGNORED, linear_cross_entropy
from glmcore.train.muon import is_muon_parameter, orthogonalize
from glmcore.train.optim import Optimizer
from glmcore.train.rows import packed_rows
from glmcore.train.schedule import LossWeights, TrainPlan
from glmcore.train.step import train_step


def stage(**fields: object) -> StageConfig:
    plain = {
        "name": "general",
        "mixture": {"prose": 1.0},
        "sequence_length": 8,
        "num_tokens": 160,
    }
    return StageConfig.from_dict({**plain, **fields}, origin="stage")


SCHEDULE = ScheduleConfig(learning_rate=2.5e-4, final_learning_rate=2.5e-5)
WEIGHTS = LossWeights()


@settings(deadline=None, max_examples=20)
@given(
    num_tokens=st.integers(1, 1100),
    ignored=st.floats(0, 1),
    seed=st.integers(0, 2**31),
)
def test_chunked_cross_entropy_equals_the_plain_one_and_so_do_its_gradients(num_tokens, ignored, seed):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(num_tokens, 8, dtype=torch.float64, generator=generator, requires_grad=True)
    weight = torch.randn(16, 8, dtype=torch.float64, generator=generator, requires_grad=True)
    labels = torch.randint(0, 16, (num_tokens,), generator=generator)
    labels[torch.rand(num_tokens, generator=generator) < ignored] = IGNORED

    plain = F.cross_entropy(hidden @ weight.T, labels, ignore_index=IGNORED, reduction="sum")
    expected = torch.autograd.grad(plain * 3, (hidden, weight))
    fast = linear_cross_entropy(hidden, weight, labels)
    given_back = torch.autograd.grad(fast * 3, (hidden, weight))

    torch.testing.assert_close(fast, plain, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(given_back, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 16, 4), (2, 4, 16)])
def test_orthogonalizing_moves_every_singular_value_near_one(shape):
    values = torch.linalg.svdvals(orthogonalize(torch.randn(shape, dtype=torch.float64)))
    # The quintic's own band for inputs that are not tiny.
    assert float(values.min()) > 0.4
    assert float(values.max()) < 1.3


def test_muon_takes_the_hidden_matrices_and_nothing_else():
    model = Glm(GlmConfig(**TINY))
    chosen = {name for name, parameter in model.named_parameters() if is_muon_parameter(name, parameter)}
    assert "model.layers.1.mlp.experts.gate_up_proj" in chosen
    assert "model.layers.1.mlp.gate.weight" in chosen
    assert "model.layers.3.eh_proj.weight" in chosen
    assert not any("embed" in name or "lm_head" in name or "norm" in name or "bias" in name for name in chosen)


def test_a_muon_update_has_the_promised_size_and_treats_stacked_experts_one_by_one():
    model = Glm(GlmConfig(**TINY)).init_weights(0)
    optimizer = Optimizer(model, OptimizerConfig(weight_decay=0.0, max_grad_norm=1e9))
    name = "model.layers.1.mlp.experts.gate_up_proj"
    parameter = dict(model.named_parameters())[name]
    before = parameter.detach().clone()
    for other in model.parameters():
        other.grad = torch.randn_like(other)
    grad = parameter.grad.clone()
    optimizer.step(learning_rate=0.01)
    update = (before - parameter.detach()) / 0.01
    gate = grad[2, :16] * 1.95  # Nesterov: g + 0.95 * (0 * 0.95 + g)
    expected = orthogonalize(gate[None])[0] * 0.2 * 32**0.5
    torch.testing.assert_close(update[2, :16], expected, rtol=1e-3, atol=1e-3)
    assert float(update.square().mean().sqrt()) == pytest.approx(0.2, rel=0.2)


def test_adam_equals_the_one_of_pytorch():
    model = Glm(GlmConfig(**TINY)).init_weights(0)
    twin = Glm(GlmConfig(**TINY)).init_weights(0)
    optimizer = Optimizer(model, OptimizerConfig(matrices="adamw", max_grad_norm=1e9))
    decayed = [p for p in twin.parameters() if p.dim() >= 2]
    plain = [p for p in twin.parameters() if p.dim() < 2]
    reference = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}], betas=(0.9, 0.95)
    )
    for step in range(3):
        for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
            ours.grad = torch.randn(ours.shape, generator=torch.Generator().manual_seed(step))
            theirs.grad = ours.grad.clone()
        for group in reference.param_groups:
            group["lr"] = 0.01 * (step + 1)
        optimizer.step(0.01 * (step + 1))
        reference.step()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_micro_batches_give_the_gradients_of_the_whole_step():
    parts = [batch_of([5, 3], seed=1), batch_of([8], seed=2)]
    joined = batch_of([5, 3, 8])
    joined = PackedBatch(
        **{
            **vars(joined),
            **{
                field: np.concatenate([getattr(part, field) for part in parts])
                for field in ("input_ids", "labels", "position_ids", "loss_mask")
            },
        }
    )
    gradients = []
    for batches in (parts, [joined]):
        model = Glm(GlmConfig(**TINY)).init_weights(0).double()
        result = train_step(model, batches, WEIGHTS, ALONE)
        gradients.append([parameter.grad for parameter in model.parameters()])
        assert torch.allclose(result.routers.share.sum(-1), torch.ones(len(result.routers.share)))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_training_lowers_the_loss_and_balances_the_experts():
    model = Glm(GlmConfig(**TINY)).init_weights(0)
    optimizer = Optimizer(model, OptimizerConfig())
    batch = batch_of([30, 20, 14], seed=4)
    first = train_step(model, [batch], WEIGHTS, ALONE)
    optimizer.step(0.02)
    for _ in range(30):
        last = train_step(model, [batch], WEIGHTS, ALONE)
        optimizer.step(0.02)
    assert last.loss < 0.5 * first.loss
    assert last.mtp_loss < 0.7 * first.mtp_loss
    assert all(bool(router.e_score_correction_bias.any()) for router in model.routers)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schedule": {"learning_rate": 0.1, "final_learning_rate": 0.1}}, "other stages follow train.schedule"),
        ({"kind": "sft"}, "an sft stage needs a schedule of its own"),
        ({"num_tokens": 1.5}, "num_tokens: "),
        ({"packing": "bestfit"}, "packing: "),
        ({"packing": "concat", "too_long": "drop"}, "is for best fit"),
    ],
)
def test_a_wrong_stage_names_the_field(fields, message):
    with pytest.raises(ConfigError, match=message):
        stage(**fields)


@pytest.mark.parametrize("packing", ["concat", "stream", "best_fit", "blocks"])
def test_a_stage_trains_on_the_rows_of_its_packing_and_resumes_bit_for_bit(tmp_path, packing):
    with ShardWriter(tmp_path / "prose", TINY["vocab_size"]) as writer:
        generator = np.random.default_rng(0)
        for length in generator.integers(1, 20, 50):
            writer.append(generator.integers(0, TINY["vocab_size"], length, np.int32))
    sources = [Source("prose", TokenShards.open(tmp_path / "prose"), 1.0)]
    steps = stage(packing=packing, num_tokens=96, rows_per_micro_batch=2)
    config = TrainConfig(
        schedule=SCHEDULE.model_copy(update={"warmup_tokens": 48}), batch=BatchConfig(num_tokens=24), stages=[steps]
    )
    plan = TrainPlan(config)

    def run(folder: str, first_step: int) -> Glm:
        rows = packed_rows(config.stages[0], sources, num_rows=plan.stages[0].num_rows, seed=1, pad_id=0)
        model = Glm(GlmConfig(**TINY)).init_weights(seed=1)
        optimizer = Optimizer(model, config.optimizer)
        store = CheckpointStore(tmp_path / folder, CheckpointConfig(keep_last=1))
        found = store.latest()
        if found:
            store.load(found, model, optimizer)
        loop = StageLoop(config, 0, model, optimizer, store, ALONE)
        metrics = MetricLog(tmp_path / f"{folder}.jsonl")
        if folder == "stopped" and first_step == 1:
            batches = [rows.batch(3 * step + start, size) for step in (0, 1) for start, size in ((0, 2), (2, 1))]
            for step in (1, 2):
                train_step(model, batches[2 * step - 2 : 2 * step], plan.loss_weights(0, step), ALONE)
                optimizer.step(plan.learning_rate(0, step))
            store.save(Progress(0, 2), model, optimizer)
            store.wait()
        else:
            loop.run(rows, first_step, metrics)
            assert [record["step"] for record in metrics.read()] == list(range(first_step, 5))
        return model

    whole = run("whole", 1)
    run("stopped", 1)
    resumed = run("stopped", 3)
    for (name, one), other in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
