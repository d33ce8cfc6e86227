import json
import math
import subprocess
import sys
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ALONE, TINY, output_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from glmcore.cli import main
from glmcore.errors import ConfigError
from glmcore.model.config import GlmConfig
from glmcore.model.counts import count_parameters
from glmcore.model.glm import Glm
from glmcore.model.parallel.config import ParallelConfig
from glmcore.model.presets import preset_values
from glmcore.packing import PackedBatch
from glmcore.plan import memory, step_time
from glmcore.plan.activations import kept_at_the_end, kept_by_layer, kept_by_mtp
from glmcore.plan.hardware import GPUS, Assumptions
from glmcore.plan.layouts import describe, layouts
from glmcore.plan.links import Link
from glmcore.plan.memory import peak_memory
from glmcore.plan.planner import Planner, StageLoad
from glmcore.plan.step_time import Load, newton_schulz_operations
from glmcore.train import loss
from glmcore.train.config import OptimizerConfig
from glmcore.train.loss import IGNORED
from glmcore.train.muon import NEWTON_SCHULZ_STEPS
from glmcore.train.optim import Optimizer
from glmcore.train.schedule import LossWeights
from glmcore.train.step import train_step

GLM46 = GlmConfig(**preset_values("glm-4.6"))
STAGE = StageLoad("general", 4_096, 15 * 10**12, 64 << 20, 240_000)


def planner(num_gpus: int = 1024, gpu: str = "h200", **assumed: float) -> Planner:
    return Planner(GLM46, GPUS[gpu], num_gpus, Assumptions(**assumed))


class LiveBytes(TorchDispatchMode):
    """Bytes of all tensors that operators have made and that are still there, and the most there ever were."""

    def __init__(self, begun_with: int) -> None:
        super().__init__()
        self.now = self.most = begun_with
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.add(tensor.untyped_storage())
        return result

    def add(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self.known or not size:
            return
        self.known.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self.forget, key, size)

    def forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def rows(config: GlmConfig, num_rows: int, length: int, seed: int) -> PackedBatch:
    """Rows of one document each, every token with a loss but the last."""
    ids = np.random.default_rng(seed).integers(0, config.vocab_size, num_rows * length).astype(np.int32)
    labels = np.append(ids[1:], IGNORED).astype(np.int32)
    labels[length - 1 :: length] = IGNORED
    return PackedBatch(
        input_ids=ids,
        labels=labels,
        position_ids=np.tile(np.arange(length, dtype=np.int32), num_rows),
        loss_mask=np.ones(len(ids), np.uint8),
        cu_seqlens=np.arange(0, len(ids) + 1, length, dtype=np.int32),
        max_seqlen=length,
    )


SMALL = GlmConfig(
    **{
        **TINY,
        "vocab_size": 2_048,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "head_dim": 32,
        "moe_intermediate_size": 64,
        "n_routed_experts": 16,
        "max_position_embeddings": 1_024,
    }
)
WIDE = SMALL.model_copy(
    update={"hidden_size": 192, "num_key_value_heads": 1, "use_qk_norm": False, "num_nextn_predict_layers": 0}
)


@pytest.mark.parametrize("config", [SMALL, WIDE], ids=["small", "wide"])
@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_the_memory_of_real_runs_is_foreseen_within_a_tenth(config, checkpointing):
    num_rows, length = 4, 256
    model = Glm(config).init_weights(0).set_activation_checkpointing(checkpointing)
    optimizer = Optimizer(model, OptimizerConfig())
    held = [*model.state_dict().values(), *optimizer.state_tensors().values()]
    with LiveBytes(sum(tensor.nbytes for tensor in held)) as live:
        for tensor in held:
            live.known.add(id(tensor.untyped_storage()))
        for step in range(2):
            batches = [rows(config, num_rows, length, seed=2 * step + i) for i in range(2)]
            train_step(model, batches, LossWeights(), ALONE)
            optimizer.step(1e-3)
    load = Load(length, num_rows, 2, checkpointing, width=4)
    foreseen = peak_memory(config, count_parameters(config), ParallelConfig(), load, Assumptions(reserved_gb=0))
    assert foreseen.total == pytest.approx(live.most, rel=0.1)


@pytest.mark.parametrize("config", [SMALL, WIDE], ids=["small", "wide"])
@pytest.mark.parametrize("checkpointing", ["none", "full"])  # hooks do not see what `selective` keeps
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_kept_for_the_backward_pass_is_counted_byte_by_byte(config, checkpointing, dtype):
    """All that the model keeps is in the formula: a tenth is what lengths of batches and the like may add."""
    model = Glm(config).init_weights(0).to(dtype).set_activation_checkpointing(checkpointing)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    batch = rows(config, 4, 256, seed=0)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = output_of(model, batch, with_mtp=True)
    width = dtype.itemsize
    counts = count_parameters(config)
    expected = counts.num_dense_layers * kept_by_layer(config, width, checkpointing, dense=True)
    expected += counts.num_moe_layers * kept_by_layer(config, width, checkpointing, dense=False)
    expected += counts.num_mtp_layers * kept_by_mtp(config, width, checkpointing)
    expected += config.hidden_size * width  # the final norm's input
    for routing in output.routings:  # the balance loss and the figures of the routers hold them in any case
        for tensor in vars(routing).values():
            if tensor is not None:  # nothing is replayed
                keep(tensor)
    assert sum(storage.nbytes() for storage in kept.values()) / 1024 == pytest.approx(expected, rel=0.1)
    assert kept_at_the_end(config, width) > config.hidden_size * width


@settings(deadline=None, max_examples=30)
@given(
    num_gpus=st.sampled_from([1, 6, 8, 24, 64]),
    length=st.sampled_from([4_096, 32_768, 202_752]),
    rows_per_step=st.integers(1, 512),
)
def test_every_layout_has_all_gpus_and_divides_what_it_splits(num_gpus, length, rows_per_step):
    found = list(layouts(GLM46, num_gpus, length, rows_per_step))
    assert len({describe(layout) for layout in found}) == len(found)
    for layout in found:
        assert layout.num_ranks == num_gpus
        assert rows_per_step % layout.data == 0
        assert length % layout.context == 0
        assert GLM46.num_key_value_heads % layout.tensor == 0
        assert GLM46.n_routed_experts % (layout.expert * layout.tensor) == 0
        assert layout.pipeline <= GLM46.num_hidden_layers


def test_layouts_that_are_shown_fit_and_come_fastest_first():
    plan = planner().plan(STAGE, None, keep=20)
    times = [candidate.time.total for candidate in plan.candidates]
    assert times == sorted(times)
    assert len(times) == 20
    for candidate in plan.candidates:
        assert candidate.memory.total <= GPUS["h200"].memory_bytes
        assert 0 < candidate.mfu < 0.7  # below the assumed efficiency of products
    # A step takes as long as its parts, a stage as long as its steps.
    best = plan.candidates[0]
    assert best.time.total == pytest.approx(math.fsum(vars(best.time).values()))
    assert plan.seconds == pytest.approx(best.time.total * STAGE.num_tokens / STAGE.tokens_per_step)


def test_better_hardware_and_more_of_it_are_faster():
    seconds = [planner(gpu=gpu).plan(STAGE, None, 1).seconds for gpu in ("h100", "h200", "b200")]
    assert seconds[0] > seconds[1] > seconds[2]
    assert planner(2048).plan(STAGE, None, 1).seconds < seconds[1] * 0.6
    assert planner(matmul=0.35).plan(STAGE, None, 1).seconds > seconds[1]


def test_more_ranks_of_a_dimension_cost_memory_nowhere():
    load = Load(4_096, 1, 8, "full")
    whole = peak_memory(GLM46, count_parameters(GLM46), ParallelConfig(), load, Assumptions())
    for dimension in ("data", "context", "tensor", "pipeline"):
        split = ParallelConfig(**{dimension: 4})
        part = peak_memory(GLM46, count_parameters(GLM46), split, load, Assumptions())
        assert part.weights + part.gradients + part.optimizer < 0.6 * (whole.weights * 3)


def test_what_does_not_fit_says_by_how_much():
    plan = planner(8, "h100").plan(STAGE, None, 3)
    assert plan.candidates == ()
    assert plan.least_memory > GPUS["h100"].memory_bytes
    assert plan.seconds == float("inf")


def test_a_layout_of_other_ranks_is_refused():
    with pytest.raises(ConfigError, match="64 ranks, --gpus is 1024"):
        planner().plan(STAGE, ParallelConfig(data=64), 1)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"tensor": 16, "data": 64}, "tensor=16 does not divide num_key_value_heads 8"),
        ({"data": 64, "tensor": 4, "expert": 64, "context": 4}, "does not divide n_routed_experts 160"),
        ({"pipeline": 128, "data": 8}, "pipeline=128 exceeds num_hidden_layers 92"),
        ({"data": 1024}, "data=1024 does not divide rows of a step 16,383"),
    ],
)
def test_a_layout_that_does_not_divide_is_refused_with_what(layout, message):
    stage = StageLoad("general", 4_096, 10**9, 16_383 * 4_096 if layout == {"data": 1024} else 64 << 20, 1)
    with pytest.raises(ConfigError, match=message):
        planner().plan(stage, ParallelConfig(**layout), 1)


def test_collectives_take_what_their_bytes_take():
    near = Link(4, 4, nvlink=100.0, network=10.0)
    far = Link(16, 8, nvlink=100.0, network=10.0)
    assert near.gather(400) == pytest.approx(3)
    assert near.all_reduce(400) == pytest.approx(6)
    assert far.gather(1600) == pytest.approx(1500 / 80)  # eight adapters bring in what comes from the other node
    assert far.all_to_all(1600) == pytest.approx(800 / 10)  # but each GPU sends its own half over its own
    assert Link(1, 1, 100.0, 10.0).gather(100) == 0


def test_newton_schulz_is_counted_matrix_by_matrix():
    config = SMALL.model_copy(
        update={"num_hidden_layers": 1, "first_k_dense_replace": 1, "num_nextn_predict_layers": 0}
    )
    model = Glm(config)
    total = 0.0
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2 and "embed" not in name and "lm_head" not in name:
            a, b = sorted(parameter.shape)
            total += 5 * (2 * a * a * b + 2 * a**3 + 2 * a * a * b)
    assert newton_schulz_operations(config, count_parameters(config)) == pytest.approx(total)


def test_the_command_prints_tables_and_json(capsys):
    assert main(["plan", "glm-4.6", "--gpus", "1024", "--gpu", "h200", "--stage", "general", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    (stage,) = told["stages"]
    assert stage["days"] > 0
    assert stage["layouts"][0]["memory_bytes"]["total"] <= told["gpu"]["memory_bytes"]
    assert told["parameters"]["body_and_mtp"] / 1e9 == pytest.approx(355.23, abs=0.01)
    arguments = ["plan", "glm-4.6", "--gpus", "16", "--gpu", "b200", "--stage", "general"]
    assert main([*arguments, "--parallel", "data=16", "expert=8"]) == 0
    assert "none fits" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "8", "--stage", "nothing"], "no stage 'nothing'"),
        (["--gpus", "8", "--assume", "speed=2"], "speed"),
        (["--gpus", "8", "--parallel", "data=4"], "4 ranks"),
    ],
)
def test_a_plan_that_makes_no_sense_is_one_line(arguments, message, capsys):
    assert main(["plan", "glm-4.6", *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_planning_needs_no_torch():
    code = (
        "import sys; from glmcore.cli import main; "
        "assert main(['plan', 'glm-4.6', '--gpus', '512', '--stage', 'general']) == 0; "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_what_the_planner_takes_from_the_trainer_is_what_the_trainer_does():
    assert (memory.CHUNK_BYTES, memory.MIN_CHUNK_TOKENS) == (loss.CHUNK_BYTES, loss.MIN_CHUNK_TOKENS)
    assert step_time.NEWTON_SCHULZ_STEPS == NEWTON_SCHULZ_STEPS
