"""`glmcore train`: one stage after the other, with everything that a recipe can ask for."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from glmcore.cli import main
from glmcore.data import manifest
from glmcore.data.shards import TokenShards
from glmcore.data.tokenize import held_out_distance
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


@pytest.fixture(scope="module")
def finished(directory) -> Path:
    """The same run, all of its stages done."""
    assert train(directory) == 0
    return directory


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


def test_every_record_is_in_tensorboard_once(finished):
    records = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    board = EventAccumulator(str(finished / "tensorboard"))
    board.Reload()
    shown = [(event.step, event.value) for event in board.Scalars("loss")]
    assert shown == [(line, pytest.approx(record["loss"])) for line, record in enumerate(records, start=1)]
    validated = [r["step"] for r in records if "validation_loss" in r and r["stage"] == "general"]
    assert validated == [3, 5]
    assert set(records[4]["validation_loss"]) == {"prose", "code"}
    assert len(board.Scalars("validation_loss/prose")) == 2


def test_held_out_documents_are_in_no_mixture(finished):
    recipe = Recipe.load([finished / "recipe.toml"])

    class Run:
        shards = finished / "shards"

    told = manifest.read(Run.shards)
    for name in recipe.train.stages[0].mixture:
        groups = {group.bucket: group for group in manifest.groups(Run.shards, told, name)}
        [drawn] = mixture_sources(Run(), {name: 1.0})
        held = TokenShards.open(groups["held_out"].files)
        assert 0 < len(held) <= 0.1 * (len(held) + len(drawn.shards)) + 1
        texts = {tuple(ids.tolist()) for ids in drawn.shards}
        assert not any(tuple(ids.tolist()) in texts for ids in held)


@given(num_documents=st.integers(0, 500), share=st.floats(0, 0.5))
def test_at_least_one_document_is_held_out_and_never_all(num_documents, share):
    every = held_out_distance(num_documents, share)
    held = [i for i in range(num_documents) if every and i % every == every // 2]
    assert bool(held) == (share > 0 and num_documents > 1)
    assert len(held) <= max(1, 0.75 * num_documents)


def test_own_sources_hold_out_documents_of_all_buckets_together(tmp_path):
    lines = [json.dumps({"text": f"document {i} of forty", "quality": i % 2}) for i in range(40)]
    (tmp_path / "web.jsonl").write_text("\n".join(lines))
    (tmp_path / "recipe.toml").write_text(
        f"""
[run]
dir = "{tmp_path}/run"
num_threads = 1
[tokenizer]
vocab_size = 300
[held_out]
share = 0.25
[[data.sources]]
name = "web"
paths = ["{tmp_path}/web.jsonl"]
fields = {{ quality = "quality" }}
buckets = [{{ name = "low", min_quality = 0.0, epochs = 1.0 }}, {{ name = "high", min_quality = 0.5, epochs = 2.0 }}]
"""
    )
    assert main(["data", "prepare", str(tmp_path / "recipe.toml")]) == 0
    shards = tmp_path / "run" / "shards"
    told = manifest.read(shards)
    sizes = {g.bucket: len(TokenShards.open(g.files)) for g in manifest.groups(shards, told, "web")}
    assert sizes["held_out"] == 10
    assert sizes["low"] + sizes["high"] == 30
    assert told["sources"][0]["documents"] == 40


def test_fill_in_the_middle_acts_on_the_built_in_code(finished):
    lines = (finished / "corpus" / "code.jsonl").read_text(encoding="utf-8").splitlines()
    assert all("middle" in json.loads(line) for line in lines)


def test_the_report_has_the_held_out_loss_and_the_share_of_the_peak(finished, capsys):
    assert main(["report", str(finished), "--json"]) == 0
    general, repository, _ = json.loads(capsys.readouterr().out)["stages"]
    assert set(general["validation_loss"]) == {"prose", "code"}
    assert set(repository["validation_loss"]) == {"repository", "reasoning"}
    assert 0 < general["mfu"] < 2  # a loaded machine may be slower while the peak is measured
    assert (finished / "blocks-repository.jsonl").exists()
    assert json.loads((finished / "stations.json").read_text())["peak_flops"]


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
