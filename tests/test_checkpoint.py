"""A checkpoint resumes a run to the bit, whatever ranks wrote it and whatever happened to it since."""

import os
import random
import re
import resource
import signal
import time
from pathlib import Path

import pytest
import torch
from conftest import TINY
from distributed import RanksError, StartedRanks, run_ranks
from layouts import lay_out, local_of, random_gradients, tiny_model
from torch.distributed.tensor import DTensor

from glmcore.errors import CheckpointError, ConfigError, RunError
from glmcore.model.config import GlmConfig
from glmcore.model.glm import Glm
from glmcore.model.parallel.placement import local_part
from glmcore.recipe import Recipe
from glmcore.rundir import open_run
from glmcore.train.checkpoint import CheckpointStore, Progress, load_weights
from glmcore.train.config import CheckpointConfig, OptimizerConfig
from glmcore.train.optim import Optimizer

KEEP_ALL = CheckpointConfig(keep_last=1000)


def train(model: torch.nn.Module, optimizer: Optimizer, step: int) -> float:
    """A step whose gradients depend on the step and on the random numbers of the process; its norm."""
    noise = float(torch.rand(()))
    for name, gradient in random_gradients(tiny_model(), step).items():
        if name in optimizer.parameters:
            parameter = optimizer.parameters[name]
            parameter.grad = local_of(gradient * (1 + noise), parameter)
    return optimizer.step(0.01)


def begun(steps: int) -> tuple[Glm, Optimizer]:
    torch.manual_seed(0)
    model = tiny_model()
    optimizer = Optimizer(model, OptimizerConfig())
    for step in range(steps):
        train(model, optimizer, step)
    return model, optimizer


def everything(model: torch.nn.Module, optimizer: Optimizer) -> dict[str, torch.Tensor]:
    return {**model.state_dict(), **optimizer.state_tensors()}


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def saved_three_times(directory: Path) -> tuple[Glm, Optimizer]:
    model, optimizer = begun(0)
    store = CheckpointStore(directory, KEEP_ALL)
    for step in range(1, 4):
        train(model, optimizer, step)
        store.save(Progress(0, step), model, optimizer, {"tokens": step * 10})
    store.wait()
    return model, optimizer


def test_resuming_equals_not_stopping_bit_for_bit_random_numbers_too(tmp_path):
    whole = everything(*begun(6))
    model, optimizer = begun(3)
    store = CheckpointStore(tmp_path, KEEP_ALL)
    store.save(Progress(0, 3), model, optimizer, {"rows": [3, 4]})
    train(model, optimizer, 77)  # while it is being written
    store.wait()

    torch.manual_seed(123)
    model = tiny_model()
    optimizer = Optimizer(model, OptimizerConfig())
    store = CheckpointStore(tmp_path, KEEP_ALL)
    saved = store.latest()
    assert saved is not None
    assert (saved.progress, saved.extra) == (Progress(0, 3), {"rows": [3, 4]})
    store.load(saved, model, optimizer)
    for step in range(3, 6):
        train(model, optimizer, step)
    assert_same(everything(model, optimizer), whole)


def test_nothing_in_a_checkpoint_is_a_pickle(tmp_path):
    saved_three_times(tmp_path)
    names = {path.name for path in (tmp_path / "00-00000002").iterdir()}
    assert names == {"model-00000.safetensors", "training-00000.safetensors", "manifest.json"}


def test_tied_embeddings_survive(tmp_path):
    model = tiny_model(tie_word_embeddings=True)
    store = CheckpointStore(tmp_path, KEEP_ALL)
    store.save(Progress(0, 1), model, Optimizer(model, OptimizerConfig()))
    again = Glm(GlmConfig(**{**TINY, "tie_word_embeddings": True}))
    store.wait()
    saved = store.latest()
    store.load(saved, again, Optimizer(again, OptimizerConfig()))
    assert torch.equal(again.lm_head.weight, model.model.embed_tokens.weight)
    assert again.lm_head.weight is again.model.embed_tokens.weight


def test_the_newest_stay_and_one_every_so_many_steps(tmp_path):
    model, optimizer = begun(0)
    store = CheckpointStore(tmp_path, CheckpointConfig(every_steps=50, keep_last=2, keep_every=100))
    for progress in (Progress(0, step) for step in (50, 100, 150, 200, 250)):
        store.save(progress, model, optimizer)
    for progress in (Progress(1, 50), Progress(1, 70)):
        store.save(progress, model, optimizer)
    store.wait()
    kept = ["00-00000100", "00-00000200", "01-00000050", "01-00000070"]
    assert sorted(path.name for path in tmp_path.iterdir()) == kept
    with pytest.raises(ConfigError, match="keep_every=70 must be a multiple of every_steps=50"):
        CheckpointConfig.from_dict({"keep_every": 70}, origin="recipe")


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink])
@pytest.mark.parametrize("file", ["model-00000.safetensors", "training-00000.safetensors", "manifest.json"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(tmp_path, capsys, file, damage):
    model, optimizer = saved_three_times(tmp_path)
    damage(tmp_path / "00-00000003" / file)
    store = CheckpointStore(tmp_path, KEEP_ALL)
    saved = store.latest()
    assert saved is not None
    assert saved.progress == Progress(0, 2)
    error = capsys.readouterr().err
    assert f"checkpoint {tmp_path}/00-00000003 is damaged and not used" in error
    assert file in error
    store.save(Progress(0, 3), model, optimizer)  # the run goes on and comes there again
    store.wait()
    assert store.latest().progress == Progress(0, 3)


def test_where_all_are_damaged_the_run_does_not_begin_anew_in_silence(tmp_path):
    assert CheckpointStore(tmp_path, KEEP_ALL).latest() is None
    saved_three_times(tmp_path)
    for path in tmp_path.iterdir():
        flip(path / "model-00000.safetensors")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is whole"):
        CheckpointStore(tmp_path, KEEP_ALL).latest()


def test_a_checkpoint_of_another_model_names_the_tensor(tmp_path):
    saved_three_times(tmp_path)
    store = CheckpointStore(tmp_path, KEEP_ALL)
    saved = store.latest()
    assert saved is not None
    wider, deeper, shallower = (
        tiny_model(**fields)
        for fields in ({"intermediate_size": 64}, {"num_hidden_layers": 4}, {"num_nextn_predict_layers": 0})
    )
    for other, fault in ((wider, "has shape"), (deeper, "is (missing|not part of)"), (shallower, "is not part of")):
        with pytest.raises(CheckpointError, match=rf"tensor 'model.model.layers.[\w.]+' {fault}"):
            load_weights(saved.path, other)
        with pytest.raises(CheckpointError, match=rf"tensor '(model|optimizer)[\w.]+layers[\w.]+' {fault}"):
            store.load(saved, other, Optimizer(other, OptimizerConfig()))
    wide = tiny_model().double()
    with pytest.raises(CheckpointError, match=r"is torch.float32, the recipe's is torch.float64"):
        store.load(saved, wide, Optimizer(wide, OptimizerConfig()))


def test_weights_alone_need_only_their_own_files(tmp_path):
    model, _ = saved_three_times(tmp_path)
    path = tmp_path / "00-00000003"
    (path / "training-00000.safetensors").unlink()
    other = tiny_model().to(torch.bfloat16)
    load_weights(path, other)
    assert_same(other.state_dict(), {name: t.to(other.lm_head.weight.dtype) for name, t in model.state_dict().items()})
    flip(path / "model-00000.safetensors")
    with pytest.raises(CheckpointError, match="its checksum differs"):
        load_weights(path, other)


def save_on_ranks(rank: int, directory: Path, layout: str, num_ranks: int) -> dict[str, torch.Tensor]:
    """Save after two steps; gives what this rank has saved, each tensor as a whole."""
    model = lay_out(layout, num_ranks, rank)
    optimizer = Optimizer(model, OptimizerConfig())
    store = CheckpointStore(directory, KEEP_ALL)
    for step in range(2):
        train(model, optimizer, step)
    store.save(Progress(0, 2), model, optimizer)
    store.wait()
    tensors = everything(model, optimizer)
    return {name: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor for name, tensor in tensors.items()}


def load_on_ranks(
    rank: int, directory: Path, layout: str, num_ranks: int, expected: dict[str, torch.Tensor]
) -> list[str]:
    """Names of tensors that are not the part of what was saved."""
    model = lay_out(layout, num_ranks, rank)
    optimizer = Optimizer(model, OptimizerConfig())
    store = CheckpointStore(directory, KEEP_ALL)
    saved = store.latest()
    assert saved is not None
    store.load(saved, model, optimizer)
    assert optimizer.num_updates == 2
    tensors = everything(model, optimizer)
    return [
        name
        for name, tensor in tensors.items()
        if not torch.equal(local_part(tensor), local_part(local_of(expected[name], tensor)))
    ]


@pytest.mark.parametrize(
    ("writers", "readers"),
    [
        ((4, "fsdp"), (2, "fsdp")),
        ((4, "tensor"), (1, "plain")),
        ((4, "expert"), (2, "hsdp")),
        ((4, "pipeline"), (2, "fsdp")),
        ((1, "plain"), (4, "tensor")),
        ((2, "hsdp"), (4, "pipeline")),
    ],
)
def test_other_ranks_in_another_layout_go_on_with_it(tmp_path, writers, readers):
    saved: dict[str, torch.Tensor] = {}
    for tensors in run_ranks(writers[0], save_on_ranks, tmp_path, writers[1], writers[0]):
        saved |= tensors
    assert run_ranks(readers[0], load_on_ranks, tmp_path, readers[1], readers[0], saved) == [[]] * readers[0]
    model = Glm(GlmConfig(**TINY))
    load_weights(tmp_path / "00-00000002", model)  # in a process that was not started with others
    assert_same(model.state_dict(), saved)


def run_out_of_space(rank: int, directory: Path, full_rank: int) -> str:
    model = lay_out("fsdp", 2, rank)
    optimizer = Optimizer(model, OptimizerConfig())
    store = CheckpointStore(directory, KEEP_ALL)
    store.save(Progress(0, 1), model, optimizer)
    store.wait()
    if rank == full_rank:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    store.save(Progress(0, 2), model, optimizer)
    try:
        store.wait()
    except CheckpointError as error:
        return str(error)
    return "no error"


def test_where_a_disk_is_full_all_ranks_say_so_and_the_earlier_checkpoint_stays(tmp_path):
    for message in run_ranks(2, run_out_of_space, tmp_path, 1):
        assert "cannot write" in message
        assert "model-00001.safetensors: File too large; the checkpoint of stage 0, step 1 is whole" in message
    assert [path.name for path in tmp_path.iterdir()] == ["00-00000001"]
    assert CheckpointStore(tmp_path, KEEP_ALL).latest() is not None


def train_to_the_end(rank: int, directory: Path, num_ranks: int, steps: int) -> dict[str, torch.Tensor]:
    """Train with a checkpoint at every step, from wherever an earlier call was killed."""
    torch.manual_seed(rank)
    model = lay_out("fsdp" if num_ranks > 1 else "plain", num_ranks, rank)
    optimizer = Optimizer(model, OptimizerConfig())
    store = CheckpointStore(directory / "checkpoints", CheckpointConfig(keep_last=2))
    saved = store.latest()
    norms: list[float] = []
    if saved is not None:
        store.load(saved, model, optimizer)
        norms = saved.extra["norms"]
    for step in range(len(norms), steps):
        norms.append(train(model, optimizer, step))
        store.save(Progress(0, step + 1), model, optimizer, {"norms": norms})
    store.wait()
    result = {name: local_part(tensor).detach() for name, tensor in everything(model, optimizer).items()}
    return {**result, "norms": torch.tensor(norms, dtype=torch.float64)}


@pytest.mark.parametrize(("num_ranks", "kills"), [(1, 5), (2, 3)])
def test_killed_at_random_moments_a_run_ends_with_the_same_curve_and_weights_bit_for_bit(tmp_path, num_ranks, kills):
    steps = 25
    expected = run_ranks(num_ranks, train_to_the_end, tmp_path / "whole", num_ranks, steps)
    delays = random.Random(num_ranks)
    interrupted = 0
    for _ in range(kills):
        ranks = StartedRanks(num_ranks, train_to_the_end, tmp_path / "killed", num_ranks, steps)
        known = len(list((tmp_path / "killed").glob("checkpoints/*")))
        while len(list((tmp_path / "killed").glob("checkpoints/*"))) <= min(known, 1) and ranks.processes[0].is_alive():
            time.sleep(0.005)
        time.sleep(delays.uniform(0, 0.2))
        interrupted += ranks.processes[0].is_alive()
        ranks.kill()
    assert interrupted
    results = run_ranks(num_ranks, train_to_the_end, tmp_path / "killed", num_ranks, steps)
    for ours, theirs in zip(results, expected, strict=True):
        assert_same(ours, theirs)


def test_a_rank_that_dies_while_all_write_leaves_no_half_checkpoint(tmp_path):
    with pytest.raises(RanksError):
        run_ranks(2, die_while_writing, tmp_path)
    saved = CheckpointStore(tmp_path, KEEP_ALL).latest()
    assert saved is not None
    assert saved.progress == Progress(0, 1)


def die_while_writing(rank: int, directory: Path) -> None:
    model = lay_out("fsdp", 2, rank)
    optimizer = Optimizer(model, OptimizerConfig())
    store = CheckpointStore(directory, KEEP_ALL)
    store.save(Progress(0, 1), model, optimizer)
    store.wait()
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    store.save(Progress(0, 2), model, optimizer)
    store.wait()


@pytest.mark.parametrize(
    ("change", "is_refused"),
    [
        ("parallel.data=2", False),
        ("run.num_threads=2", False),
        ("train.checkpoint.keep_last=5", False),
        ("train.optimizer.weight_decay=0.2", True),
        ("model.hidden_size=64", True),
    ],
)
def test_a_run_goes_on_with_another_layout_and_not_with_another_optimizer(tmp_path, change, is_refused):
    tiny = Path(__file__).parent / "tiny.toml"
    with open_run(Recipe.load([tiny], [f"run.dir={tmp_path}"])) as run:
        run.record_station("corpus", 1.0)
    other = Recipe.load([tiny], [f"run.dir={tmp_path}", change])
    if is_refused:
        with pytest.raises(RunError, match=f"begun with another {change.partition('=')[0]}"), open_run(other):
            pass
    else:
        with open_run(other) as run:
            assert run.recipe == other


def test_the_python_of_the_guide_runs(tmp_path, monkeypatch):
    guide = (Path(__file__).parents[1] / "docs" / "checkpoints.md").read_text()
    [code] = re.findall(r"```python\n(.*?)```", guide, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "checkpoints.md", "exec"), {})
