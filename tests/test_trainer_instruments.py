"""What the trainer watches, and that watching changes nothing."""

import json
import math
import statistics
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ALONE, TINY, output_of
from distributed import run_ranks
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from glmcore.data.block_starts import RememberedBlocks
from glmcore.data.blocks import PackedBlocks
from glmcore.data.loader import Source
from glmcore.data.shards import ShardWriter, TokenShards
from glmcore.errors import RunError
from glmcore.metrics import MetricLog
from glmcore.model.config import GlmConfig
from glmcore.model.flops import training_flops
from glmcore.model.glm import Glm
from glmcore.model.parallel.config import ParallelConfig
from glmcore.model.parallel.ranks import Ranks
from glmcore.train.checkpoint import CheckpointStore
from glmcore.train.config import CheckpointConfig, SpikeConfig, TrainConfig, ValidationConfig
from glmcore.train.loop import StageLoop
from glmcore.train.optim import Optimizer
from glmcore.train.peak import batch_flops, measure_peak_flops
from glmcore.train.rows import BlockStarts, packed_rows
from glmcore.train.schedule import TrainPlan
from glmcore.train.spikes import SpikeGuard
from glmcore.train.validation import Validation

PAD = 0
POISON = 63
"""A token whose embedding the tests spoil."""


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> list[Source]:
    """Texts of two sources; the poisonous token is in one document of the first."""
    folder = tmp_path_factory.mktemp("sources")
    generator = np.random.default_rng(0)
    for name in ("prose", "code"):
        with ShardWriter(folder / name, TINY["vocab_size"]) as writer:
            for length in generator.integers(2, 20, 60).tolist():
                writer.append(generator.integers(1, POISON, length, np.int32))
            if name == "prose":
                writer.append([1, POISON, 2])
    return [Source(name, TokenShards.open(folder / name), 1.0) for name in ("prose", "code")]


def train_config(**fields) -> TrainConfig:
    """Ten steps: rows of 8 tokens, two a step at first and four at the end."""
    values = {
        "schedule": {"learning_rate": 0.01, "final_learning_rate": 0.001, "warmup_tokens": 48},
        "batch": {"initial_tokens": 16, "num_tokens": 32, "ramp_tokens": 160},
        "validation": {"every_steps": 4, "max_rows": 3},
        "checkpoint": {"every_steps": 3},
        "stages": [
            {"name": "general", "mixture": {"prose": 1.0, "code": 1.0}, "num_tokens": 240, "sequence_length": 8}
        ],
    }
    return TrainConfig.from_dict({**values, **fields}, origin="test")


def run(
    folder: Path, config: TrainConfig, sources: list[Source], *, spoil: bool = False, stop_after: int | None = None
):
    """Train from the last checkpoint of a folder to the end, or until a step is over; gives model and records."""
    plan = TrainPlan(config)
    model = Glm(GlmConfig(**TINY)).init_weights(seed=1)
    optimizer = Optimizer(model, config.optimizer)
    store = CheckpointStore(folder / "checkpoints", config.checkpoint)
    found = store.latest()
    if found:
        store.load(found, model, optimizer)
    if spoil:
        with torch.no_grad():
            model.model.embed_tokens.weight[POISON] = math.nan
    first = found.progress.step + 1 if found else 1
    folder.mkdir(exist_ok=True)
    metrics = MetricLog(folder / "metrics.jsonl")
    metrics.truncate_after("general", first - 1)
    rows = packed_rows(config.stages[0], sources, num_rows=plan.stages[0].num_rows, seed=1, pad_id=PAD)
    validation = Validation.of(config.validation, config.stages[0], sources, PAD) if config.validation else None
    loop = StageLoop(config, 0, model, optimizer, store, ALONE, validation=validation, peak_flops=1e9)
    if stop_after is None:
        loop.run(rows, first, metrics)
    else:
        with pytest.raises(KeyboardInterrupt):
            loop.run(EndingRows(rows, loop.steps.step(stop_after).rows.stop), first, metrics)
    return model, metrics.read()


class EndingRows:
    """Rows of which those from `end` on are the end of the run."""

    def __init__(self, rows, end: int) -> None:
        self.rows, self.end, self.capacity = rows, end, rows.capacity

    def batch(self, first_row: int, num_rows: int):
        if first_row >= self.end:
            raise KeyboardInterrupt
        return self.rows.batch(first_row, num_rows)


def without_times(records: list[dict]) -> list[dict]:
    times = {"seconds", "tokens_per_s", "mfu", "peak_gib", "validation_seconds"}
    return [{name: value for name, value in record.items() if name not in times} for record in records]


def test_a_run_with_a_ramp_validation_and_skipped_steps_is_resumed_to_the_bit(tmp_path, sources):
    config = train_config(spikes={"window": 4, "max_deviations": 0.4})
    whole, records = run(tmp_path / "whole", config, sources)
    skipped = [record["step"] for record in records if record.get("skipped")]
    assert skipped
    assert len(skipped) < 7
    assert [record["tokens"] for record in records] == sorted(record["tokens"] for record in records)
    assert {record["tokens"] for record in records} == {16, 24, 32}
    assert [record["step"] for record in records if "validation_loss" in record] == [4, 8, len(records)]

    _, stopped = run(tmp_path / "stopped", config, sources, stop_after=5)  # two steps after a checkpoint
    assert len(stopped) == 5
    resumed, again = run(tmp_path / "stopped", config, sources)
    assert without_times(again) == without_times(records)
    for (name, one), other in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_validating_changes_nothing_of_the_training(tmp_path, sources):
    with_it, _ = run(tmp_path / "with", train_config(), sources)
    without, records = run(tmp_path / "without", train_config(validation=None), sources)
    assert not any("validation_loss" in record for record in records)
    for one, other in zip(with_it.state_dict().values(), without.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_a_skipped_step_leaves_weights_and_optimiser_and_a_later_one_goes_on():
    model = Glm(GlmConfig(**TINY)).init_weights(0)
    optimizer = Optimizer(model, train_config().optimizer)
    before = {
        name: tensor.clone() for name, tensor in [*model.state_dict().items(), *optimizer.state_tensors().items()]
    }
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    assert optimizer.step(0.1, skip_above=1.0) > 1.0
    for name, tensor in [*model.state_dict().items(), *optimizer.state_tensors().items()]:
        assert torch.equal(before[name], tensor), name
    assert all(parameter.grad is None for parameter in model.parameters())


@given(
    values=st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10)), max_size=12),
    loss=st.floats(0, 20),
    deviations=st.floats(0.1, 4),
)
def test_the_guard_skips_what_is_beyond_the_deviations_of_the_window(values, loss, deviations):
    guard = SpikeGuard(SpikeConfig(window=6, max_deviations=deviations))
    for pair in values:
        guard.add(*pair)
    last = values[-6:]
    assert guard.history == last
    limit = guard.max_grad_norm(loss)
    if len(last) < 3:
        assert limit == math.inf
        return
    bounds = [statistics.fmean(c) + deviations * statistics.pstdev(c) for c in zip(*last, strict=True)]
    assert limit == (bounds[1] if loss <= bounds[0] else -1.0)


def test_without_a_rule_nothing_is_skipped():
    guard = SpikeGuard(None, [(1.0, 1.0)] * 200)
    assert guard.max_grad_norm(1e9) == math.inf
    assert guard.history == []


def test_a_loss_that_is_no_number_stops_the_run_and_names_its_documents(tmp_path, sources):
    stage = train_config().stages[0].model_dump(exclude_none=True)
    config = train_config(validation=None, stages=[{**stage, "mixture": {"prose": 1.0}, "num_tokens": 800}])
    with pytest.raises(RunError, match=r"step \d+ of stage general: loss is nan and grad_norm is nan; its rows"):
        run(tmp_path / "run", config, sources[:1], spoil=True)
    told = json.loads((tmp_path / "run" / "nonfinite.json").read_text())
    steps = TrainPlan(config).stages[0]
    assert [row["row"] for row in told["rows"]] == list(steps.step(told["step"]).rows)
    documents = {piece["document"] for row in told["rows"] for piece in row["documents"]}
    assert 60 in documents  # the poisoned one
    assert (told["stage"], told["loss"]) == ("general", "nan")
    records = MetricLog(tmp_path / "run" / "metrics.jsonl").read()
    assert [record["step"] for record in records] == list(range(1, told["step"]))
    found = CheckpointStore(tmp_path / "run" / "checkpoints", CheckpointConfig()).latest()
    assert found is None or found.progress.step < told["step"]


def test_the_validation_loss_is_the_mean_over_the_tokens_of_each_source(sources):
    model = Glm(GlmConfig(**TINY)).init_weights(0).double()
    stage = train_config().stages[0].model_copy(update={"rows_per_micro_batch": 2})
    config = ValidationConfig(max_rows=5)
    validation = Validation.of(config, stage, sources, PAD)
    losses = validation.losses(model, ALONE)
    assert list(losses) == ["prose", "code"]
    assert losses == validation.losses(model, ALONE)
    for source in sources:
        rows = packed_rows(stage, [source], num_rows=5, seed=0, pad_id=PAD)
        batch = rows.batch(0, 5)
        with torch.no_grad():
            output = output_of(model, batch, with_mtp=False)
            expected = F.cross_entropy(model.logits(output.hidden), torch.from_numpy(batch.labels).long())
        assert losses[source.name] == pytest.approx(float(expected), rel=1e-12)
    few = Validation.of(ValidationConfig(max_rows=10_000), stage, sources, PAD)
    assert few.losses(model, ALONE)["prose"] > 0


def validation_losses(rank: int, paths: list[Path], num_ranks: int) -> dict[str, float]:
    torch.set_num_threads(1)
    sources = [Source(path.name, TokenShards.open(path), 1.0) for path in paths]
    stage = train_config().stages[0].model_copy(update={"rows_per_micro_batch": 1})
    model = Glm(GlmConfig(**TINY)).init_weights(0).double()
    ranks = Ranks(ParallelConfig(data=num_ranks))
    return Validation.of(ValidationConfig(max_rows=5), stage, sources, PAD).losses(model, ranks)


def test_data_ranks_share_the_validation_out_and_agree(tmp_path):
    generator = np.random.default_rng(1)
    with ShardWriter(tmp_path / "prose", TINY["vocab_size"]) as writer:
        for length in (8, 8, 5, 8, 8, 3):  # five rows: of four ranks one has only one, and one has none
            writer.append(generator.integers(1, POISON, length, np.int32))
    alone = validation_losses(0, [tmp_path / "prose"], 1)
    for losses in run_ranks(4, validation_losses, [tmp_path / "prose"], 4):
        assert losses["prose"] == pytest.approx(alone["prose"], rel=1e-12)


def test_records_have_the_load_of_the_experts_and_the_share_of_the_peak(tmp_path, sources):
    _, records = run(tmp_path / "run", train_config(), sources)
    for record in records:
        load = np.array(record["expert_load"])
        assert load.shape == (3, 8)  # two layers and the MTP layer
        np.testing.assert_allclose(load.sum(1), 1.0, atol=1e-4)
        assert record["max_violation"] == pytest.approx(load.max() * 8 - 1, abs=1e-3)
        assert record["dead_experts"] == int((load == 0).sum())
        assert record["grad_norm"] > 0 < record["mfu"]
        assert record["peak_gib"] > 0


def test_operations_count_documents_by_their_lengths_and_padding_not_at_all(sources):
    flops = training_flops(GlmConfig(**TINY))
    rows = PackedBlocks(sources, capacity=32, seed=1, pad_id=PAD, rows_per_block=4)
    batch = rows.batch(0, 4)
    lengths = [piece.num_tokens for row in range(4) for piece in rows.contents(row)]
    assert batch_flops(flops, batch) == pytest.approx(sum(flops(length) for length in lengths))
    assert measure_peak_flops(torch.device("cpu"), torch.float32) > 1e8


def events(directory: Path) -> dict[str, list[tuple[int, float]]]:
    board = EventAccumulator(str(directory))
    board.Reload()
    return {tag: [(event.step, event.value) for event in board.Scalars(tag)] for tag in board.Tags()["scalars"]}


def test_tensorboard_shows_every_record_once_however_often_the_run_was_resumed(tmp_path):
    for resumed_after, last in ((0, 4), (2, 5), (1, 3)):
        log = MetricLog(tmp_path / "metrics.jsonl", tmp_path / "board")
        log.truncate_after("general", resumed_after)
        for step in range(resumed_after + 1, last + 1):
            log.write("general", step, loss=float(10 * last + step), load=[[1.0]], validation_loss={"prose": 0.5})
        log.sync()
    log.write("rl", 1, loss=7.0)
    log.close()
    shown = events(tmp_path / "board")
    records = log.read()
    assert shown["loss"] == [(line, record["loss"]) for line, record in enumerate(records[:3], start=1)]
    assert shown["validation_loss/prose"] == [(1, 0.5), (2, 0.5), (3, 0.5)]
    assert shown["rl/loss"] == [(4, 7.0)]
    assert "load" not in shown


def test_blocks_are_gone_on_with_from_the_last_known_start(tmp_path, sources):
    planned: list[int] = []

    def make(start):
        blocks = PackedBlocks(sources, capacity=16, seed=2, pad_id=PAD, rows_per_block=3, start=start)
        planned.append(start.block if start else 0)
        return blocks

    file = tmp_path / "blocks.jsonl"
    whole = RememberedBlocks(make, file, 0)
    expected = [whole.batch(row, 1).input_ids for row in range(20)]
    with file.open("a") as torn:
        torn.write('{"block": 9')
    later = RememberedBlocks(make, file, 15)
    assert planned[1] > 0
    for row in range(15, 20):
        np.testing.assert_array_equal(later.batch(row, 1).input_ids, expected[row])
        assert later.contents(row) == whole.contents(row)
    stage = train_config().stages[0].model_copy(update={"packing": "blocks", "sequence_length": 16})
    starts = BlockStarts(tmp_path / "others.jsonl", 0, writes=False)
    silent = packed_rows(stage, sources, num_rows=20, seed=2, pad_id=PAD, starts=starts)
    silent.batch(0, 1)
    assert not starts.file.exists()
