"""`glmcore train`: one stage after the other, with everything that a recipe can ask for."""

import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from glmcore.cli import main
from glmcore.data import manifest
from glmcore.data.shards import TokenShards
from glmcore.recipe import RECIPES, Recipe
from glmcore.train.rows import mixture_sources

TINY = Path(__file__).parent / "tiny.toml"
FULL = [
    "held_out.share=0.1",
    "train.validation={every_steps=3, max_rows=2}",
    "train.spikes={window=4, max_deviations=50}",
    "train.tensorboard=true",
    "train.stages.1.packing=blocks",
    "train.stages.1.learned=all",
    'corpus.fill_in_the_middle={rate=1.0, span="lines"}',
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs") / "run"


def train(directory: Path, *arguments: str) -> int:
    return main(["train", str(TINY), f"run.dir={directory}", *FULL, *arguments])


def test_stages_run_one_by_one_in_their_order(directory, capsys):
    assert train(directory, "--stage", "nowhere") == 1
    assert "no stage 'nowhere': the recipe has general, repository, sft" in capsys.readouterr().err
    assert train(directory, "--stage", "sft") == 1
    message = "stage 'sft' goes on from the end of 'repository', and the run is at step 0 of 'general'"
    assert message in capsys.readouterr().err
    for stages in (["general"], ["general", "repository"], ["general", "repository", "sft"]):
        assert train(directory, "--stage", stages[-1]) == 0
        records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
        assert list(dict.fromkeys(record["stage"] for record in records)) == stages
    assert train(directory, "--stage", "general") == 0  # finished: nothing more is done
    assert train(directory) == 0
    assert len((directory / "metrics.jsonl").read_text().splitlines()) == len(records) == 12


def test_every_record_is_in_tensorboard_once(directory):
    records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    board = EventAccumulator(str(directory / "tensorboard"))
    board.Reload()
    shown = [(event.step, event.value) for event in board.Scalars("loss")]
    assert shown == [(line, pytest.approx(record["loss"])) for line, record in enumerate(records, start=1)]
    validated = [r["step"] for r in records if "validation_loss" in r and r["stage"] == "general"]
    assert validated == [3, 5]
    assert set(records[4]["validation_loss"]) == {"prose", "code"}
    assert len(board.Scalars("validation_loss/prose")) == 2


def test_held_out_documents_are_in_no_mixture(directory):
    recipe = Recipe.load([directory / "recipe.toml"])

    class Run:
        shards = directory / "shards"

    told = manifest.read(Run.shards)
    for name in recipe.train.stages[0].mixture:
        groups = {group.bucket: group for group in manifest.groups(Run.shards, told, name)}
        [drawn] = mixture_sources(Run(), {name: 1.0})
        held = TokenShards.open(groups["held_out"].files)
        assert 0 < len(held) <= 0.1 * (len(held) + len(drawn.shards)) + 1
        texts = {tuple(ids.tolist()) for ids in drawn.shards}
        assert not any(tuple(ids.tolist()) in texts for ids in held)


def test_fill_in_the_middle_acts_on_the_built_in_code(directory):
    lines = (directory / "corpus" / "code.jsonl").read_text(encoding="utf-8").splitlines()
    assert all("middle" in json.loads(line) for line in lines)


def test_the_report_has_the_held_out_loss_and_the_share_of_the_peak(directory, capsys):
    assert main(["report", str(directory), "--json"]) == 0
    general, repository, _ = json.loads(capsys.readouterr().out)["stages"]
    assert set(general["validation_loss"]) == {"prose", "code"}
    assert set(repository["validation_loss"]) == {"repository", "reasoning"}
    assert 0 < general["mfu"] < 2  # a loaded machine may be slower while the peak is measured
    assert (directory / "blocks-repository.jsonl").exists()
    assert json.loads((directory / "stations.json").read_text())["peak_flops"]


@pytest.mark.parametrize("name", ["glm-4.5", "glm-4.5-air", "glm-4.6", "nano"])
def test_a_dry_run_prints_a_recipe_that_is_the_recipe(name, tmp_path, capsys):
    assert main(["train", name, "--dry-run"]) == 0
    printed = capsys.readouterr()
    file = tmp_path / "printed.toml"
    file.write_text(printed.out)
    assert Recipe.load([file]) == Recipe.load([RECIPES / f"{name}.toml"])
    assert printed.err.count(" tokens in ") == 6


def test_a_real_recipe_names_the_data_that_is_not_there(tmp_path, capsys):
    assert main(["train", "glm-4.6", f"run.dir={tmp_path / 'run'}"]) == 1
    assert "source 'web': /data/glm/web/*.parquet holds nothing to read" in capsys.readouterr().err
