"""Ablations: their file, their runs, their figures, their page."""

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from glmcore.ablation.config import AblationConfig, load_ablation
from glmcore.ablation.page import write_ablation
from glmcore.ablation.runs import Ablation
from glmcore.ablation.table import Estimate, RunFigures, Table, differences
from glmcore.cli import main
from glmcore.errors import ConfigError, RunError
from glmcore.metrics import MetricLog, read_metrics
from glmcore.recipe import RECIPES
from glmcore.rl.evaluate import RewardEstimate
from glmcore.rl.evaluation import SuiteResult, read_evaluations

TINY = Path(__file__).parent / "tiny.toml"
DOCS = Path(__file__).parents[1] / "docs"
FILES = sorted(file for file in (RECIPES / "ablations").glob("*.toml") if file.name != "base.toml")
HOSTILE = "<script>document.title = 'taken'</script> & 5"
PLAIN = {
    "title": HOSTILE,
    "published": "elsewhere",
    "suite": "sums",
    "target": 0.5,
    "last_steps": 2,
    "columns": ["avg", "pass", "short", "length", "truncated", "entropy"],
    "arms": [{"name": "one"}, {"name": "other", "recipe": {"rl": {"loss": {"aggregation": "sequence_mean"}}}}],
}
"""A file of an ablation without what it does to the recipe."""
FILE = f"""
title = "Nothing against nothing"
published = "elsewhere"
base = {str(TINY)!r}
seeds = [0]
suite = "sums"
probe = true
last_steps = 1
target = 0.5

[recipe.rl]
max_steps = 2
updates_per_step = 1
pool = {{ num_tasks = 6 }}
evaluation = {{ every_steps = 1, suites = [{{ name = "sums", tasks = ["chain_sum"], num_tasks = 4, num_samples = 2 }}] }}

[[arms]]
name = "first"

[[arms]]
name = "second"
recipe.rl.loss.aggregation = "sequence_mean"
"""
IN_STEP_TWO = 8 + 8 + 4 + 8 + 1
"""Answers of a run before the second of its second step: evaluated before, in the suite, in a step, in the suite."""


def config_of(**changes):
    return AblationConfig.from_dict(PLAIN | changes, "the test")


def result_at(step, rewards):
    """A suite's result; the answers of a task are all right or all wrong as its reward says."""
    estimate = RewardEstimate.from_rewards(rewards)
    return SuiteResult("sums", step, 4, estimate, {1: estimate, 4: estimate}, 20.0 + step, 0.25, 0.125)


def run_of(arm, seed, last, rewards=(0.0, 0.4, 0.6, 0.8), seconds=2.0):
    steps = [
        {"step": place + 1, "reward_mean": reward, "seconds": seconds, "entropy": reward}
        for place, reward in enumerate(rewards)
    ]
    return RunFigures(arm, seed, [result_at(0, [0.0]), result_at(4, [last])], steps)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_packaged_ablation_differs_between_arms_as_it_says_and_shares_one_model(file):
    config, folder = load_ablation([str(file)])
    ablation = Ablation(config, folder, file.stem)
    base = ablation.base_recipe()
    assert len(config.seeds) >= 3
    recipes = [ablation.recipe_of(arm, config.seeds[-1]) for arm in config.arms]
    for recipe in recipes:
        assert recipe.run.seed == config.seeds[-1]
        assert (recipe.model, recipe.train, recipe.corpus) == (base.model, base.train, base.corpus)
        assert config.suite in [suite.name for suite in recipe.rl.evaluation.suites]
    first, *others = (recipe.rl.model_dump() for recipe in recipes)
    apart = {key for other in others for key in first if first[key] != other[key]}
    one = {"mode", "asynchronous"} if file.stem == "asynchronous" else apart
    assert len(apart) == 1 or apart == one


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"arms": [{"name": "one"}]}, "at least 2"),
        ({"arms": [{"name": "one"}, {"name": "one"}]}, "arms and seeds must be distinct"),
        ({"seeds": [1, 1]}, "arms and seeds must be distinct"),
        ({"seeds": [-1]}, "seeds"),
        ({"arms": [{"name": "a/b"}, {"name": "one"}]}, "arms.0.name"),
        ({"suites": ["sums"]}, "suites"),
        ({"target": 0.0}, "target"),
    ],
)
def test_a_wrong_key_is_named(changes, told):
    with pytest.raises(ConfigError, match=re.escape(told)):
        config_of(**changes)


def test_a_wrong_key_of_an_arms_recipe_is_found_before_anything_runs(tmp_path, capsys):
    file = tmp_path / "wrong.toml"
    file.write_text(FILE.replace("aggregation", "agregation"))
    assert main(["rl", "ablate", str(file), f"dir={tmp_path}/runs"]) != 0
    assert "agregation" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_one_file_is_asked_for_and_keys_of_the_command_line_win(tmp_path, capsys):
    for settings in ([], ["dir=x"], [str(FILES[0]), str(FILES[1])]):
        with pytest.raises(ConfigError, match="name one file"):
            load_ablation(settings)
    config, _ = load_ablation([str(FILES[0]), "seeds=[5,6]", f"dir={tmp_path}"])
    assert (config.seeds, config.dir) == ([5, 6], str(tmp_path))
    assert main(["rl", "ablate", str(FILES[0]), f"dir={tmp_path}", "seeds=[7]", "--dry-run"]) == 0
    names = [f"{arm.name}-7" for arm in config.arms]
    assert capsys.readouterr().out.split() == [str(tmp_path / FILES[0].stem / name) for name in names]


finite = st.floats(-1e3, 1e3)


@given(st.lists(finite, min_size=2, max_size=14))
def test_an_interval_is_students(values):
    estimate = Estimate.of(values)
    quantile = stats.t.ppf(0.975, len(values) - 1)
    half = quantile * np.std(values, ddof=1) / math.sqrt(len(values))
    assert estimate.mean == pytest.approx(np.mean(values), rel=1e-9, abs=1e-9)
    # The table has four digits: up to 10 degrees of freedom half a unit of 2.228; beyond, at most 2.228 over t(13).
    slack = 3e-4 if len(values) <= 11 else 2.228 / quantile - 1 + 1e-9
    assert half * (1 - 3e-4) - 1e-9 <= estimate.half <= half * (1 + slack) + 1e-9
    assert estimate.excludes_zero == (abs(estimate.mean) > estimate.half)


def test_one_seed_tells_nothing_of_chance():
    estimate = Estimate.of([0.25])
    assert math.isinf(estimate.half)
    assert not estimate.excludes_zero
    assert str(estimate) == "0.250 \u00b1 ?"


@pytest.mark.parametrize(
    ("mean", "half", "told"),
    [
        (0.6954, 0.0492, "0.695 \u00b1 0.049"),
        (0.0, 0.0, "0.000 \u00b1 0.000"),
        (27.62, 0.48, "27.6 \u00b1 0.5"),
        (0.000234, 0.0000121, "0.00023 \u00b1 0.00001"),
        (0.0001, 0.00251, "0.0001 \u00b1 0.0025"),
        (-0.0042, math.inf, "-0.0042 \u00b1 ?"),
    ],
)
def test_estimates_are_told_with_as_many_figures_as_they_need(mean, half, told):
    assert str(Estimate(mean, half, 3)) == told


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100)), min_size=2, max_size=9))
def test_differences_are_those_of_a_paired_test(pairs):
    runs = {
        "one": [run_of("one", seed, a / 100) for seed, (a, _) in enumerate(pairs)],
        "other": [run_of("other", seed, b / 100) for seed, (_, b) in enumerate(pairs)][::-1],
    }
    [sentence] = differences(config_of(columns=["avg"]), runs)
    told = re.fullmatch(r"other minus one, avg: (\S+) \u00b1 (\S+) over (\d+) seeds: (a|no) clear difference", sentence)
    assert told is not None, sentence
    gaps = np.array([(b - a) / 100 for a, b in pairs])
    assert int(told[3]) == len(pairs)
    assert float(told[1]) == pytest.approx(gaps.mean(), abs=6e-4)
    if np.std(gaps) > 1e-9:
        interval = stats.ttest_rel([b / 100 for _, b in pairs], [a / 100 for a, _ in pairs]).confidence_interval(0.95)
        half = (interval.high - interval.low) / 2
        # Three decimals are told, and the quantiles of T95 are good to three as well: 5e-4 of 2.26.
        assert float(told[2]) == pytest.approx(half, abs=5.1e-4 + 3e-4 * half)
        if min(abs(interval.low), abs(interval.high)) > 1e-3:  # away from where rounding decides
            assert (told[4] == "a") == (interval.low > 0 or interval.high < 0)


def test_only_seeds_that_both_arms_have_are_compared_and_missing_figures_are_not():
    runs = {
        "one": [run_of("one", 0, 0.2), run_of("one", 1, 0.4)],
        "other": [run_of("other", 1, 0.5), run_of("other", 2, 0.9)],
    }
    told = differences(config_of(columns=["avg", "kl_behaviour"]), runs)
    assert told == ["other minus one, avg: 0.100 \u00b1 ? over 1 seeds: no clear difference"]


def test_the_table_has_a_line_for_each_arm_with_the_first_step_that_reached_the_target():
    runs = [run_of(arm, seed, 0.5 + 0.1 * seed) for arm in ("one", "other") for seed in range(2)]
    runs[3] = run_of("other", 1, 0.5, rewards=(0.0, 0.1, 0.1, 0.1), seconds=4.0)
    head, _, one, other, _, *told = Table.of(config_of(), runs).markdown().splitlines()
    assert head.split(" | ")[1:] == [
        "avg@4", "pass@4", "short answers", "tokens of an answer", "truncated", "entropy",
        "steps to 0.5", "seconds to 0.5", "seconds |",
    ]  # fmt: skip
    # Rewards 0.4 and 0.6 average to the target at step 3; intervals of two seeds use t(1) = 12.706.
    average = "0.550 \u00b1 0.635"
    assert one.strip("| ").split(" | ") == [
        "one", average, average, "0.125 \u00b1 0.000", "24.0 \u00b1 0.0", "0.250 \u00b1 0.000", "0.700 \u00b1 0.000",
        "3", "6", "8",
    ]  # fmt: skip
    assert other.strip("| ").split(" | ")[-3:] == ["3 (1 of 2 runs)", "6 (1 of 2 runs)", "12"]
    assert len(told) == len(PLAIN["columns"])
    never = Table.of(config_of(target=1.0), runs).markdown().splitlines()[2]
    assert never.endswith("| not reached | - | 8 |")


def test_wall_times_are_compared_as_ratios_where_that_is_asked_for():
    runs = [run_of("one", 0, 0.5, seconds=2.0), run_of("one", 1, 0.5, seconds=4.0)]
    runs += [run_of("other", 0, 0.5, seconds=1.0), run_of("other", 1, 0.5, seconds=2.0)]
    told = Table.of(config_of(compare_seconds=True), runs).markdown().splitlines()[-1]
    assert told == "- other over one, seconds: 0.50 (95% interval 0.50 to 0.50) over 2 seeds"
    assert "over one" not in Table.of(config_of(), runs).markdown()
    assert Table.of(config_of(compare_seconds=True), runs[::2]).markdown().endswith("seconds: 0.50 over 1 seeds")


@pytest.fixture(scope="module")
def ablated(tmp_path_factory):
    """An ablation of a tiny model, run by the command with one seed."""
    folder = tmp_path_factory.mktemp("ablation")
    (folder / "tiny-ablation.toml").write_text(FILE)
    assert main(command(folder)) == 0
    return folder


def command(folder, *overrides):
    return ["rl", "ablate", str(folder / "tiny-ablation.toml"), f"dir={folder}/runs", *overrides]


def state_of(directory):
    """Bytes and times of what a run has written."""
    files = sorted(file for file in directory.rglob("*") if file.is_file() and file.name != ".lock")
    return {str(file.relative_to(directory)): (file.stat().st_mtime_ns, file.read_bytes()) for file in files}


def changed(before, after):
    """Names of files that are not what they were."""
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def test_a_command_that_is_given_again_repeats_nothing_and_does_what_is_new(ablated, capsys):
    runs = ablated / "runs"
    finished = [runs / "base", *(runs / "tiny-ablation").glob("*-0")]
    assert sorted(path.name for path in finished) == ["base", "first-0", "second-0"]
    before = {path: state_of(path) for path in finished[1:]}
    trained = (runs / "base" / "metrics.jsonl").read_bytes()
    probed = (runs / "tiny-ablation" / "probe" / "probe.jsonl").read_bytes()
    assert main(command(ablated, "seeds=[0,1]")) == 0
    assert [changed(state, state_of(path)) for path, state in before.items()] == [set(), set()]
    assert (runs / "base" / "metrics.jsonl").read_bytes() == trained
    assert (runs / "tiny-ablation" / "probe" / "probe.jsonl").read_bytes() == probed
    table = capsys.readouterr().out
    assert "second minus first, avg" in table
    assert "over 2 seeds" in table
    for arm in ("first", "second"):
        lines = (runs / "tiny-ablation" / f"{arm}-1" / "evaluations.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [0, 1, 2]


def test_a_command_that_was_stopped_goes_on_to_what_it_would_have_come_to(ablated, tmp_path, capsys):
    shutil.copytree(ablated / "runs" / "base", tmp_path / "base")
    options = f"{{ marker = '{tmp_path}/stopped', before = {IN_STEP_TWO} }}"
    stopping = [
        str(ablated / "tiny-ablation.toml"),
        f"dir={tmp_path}",
        "recipe.rl.environment.name=custom",
        "recipe.rl.environment.factory=stopping_family:StoppingFamily",
        f"recipe.rl.environment.options={options}",
        "probe=false",
    ]
    assert main(["rl", "ablate", *stopping]) == 130
    told = capsys.readouterr()
    assert (told.out, "repeat the same command" in told.err) == ("", True)
    [first, second] = (tmp_path / "tiny-ablation" / f"{arm}-0" for arm in ("first", "second"))
    assert len(read_metrics(first / "metrics.jsonl")) == 1
    assert not (second / "metrics.jsonl").exists()
    assert main(["rl", "ablate", *stopping]) == 0
    for arm in ("first", "second"):
        undisturbed = ablated / "runs" / "tiny-ablation" / f"{arm}-0"
        assert figures_of(tmp_path / "tiny-ablation" / f"{arm}-0") == figures_of(undisturbed)


def figures_of(directory):
    """What a run has come to, without times."""
    steps = [(record["reward_mean"], record["loss"]) for record in read_metrics(directory / "metrics.jsonl")]
    return steps, read_evaluations(directory / "evaluations.jsonl")


def test_the_page_shows_table_and_curves_and_the_picture_stands_alone(browser, tmp_path):
    ablation = Ablation(config_of(dir=str(tmp_path), base=str(TINY), seeds=[0, 1]), tmp_path, "shown")
    for arm in ablation.config.arms:
        for seed in ablation.config.seeds:
            write_run(ablation.directory_of(arm.name, seed), seed)
    file, table = write_ablation(ablation)
    page = browser.new_page()
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(file.as_uri())
    assert page.inner_text("h1") == HOSTILE
    assert page.title() == f"glmcore run {HOSTILE}"
    shown = [row.split("\t") for row in page.locator("#table tr").all_inner_texts()]
    sentences = page.locator("#differences li").all_inner_texts()
    assert Table(shown[0], shown[1:], sentences).markdown() == table
    assert page.locator("svg").count() == 5
    labels = page.locator("svg[aria-label='Held-out reward'] polyline").evaluate_all(
        "lines => lines.map(line => line.getAttribute('data-label'))"
    )
    assert labels == ["one", "other"]
    page.goto((file.parent / "held_out.svg").as_uri())
    assert page.locator("polyline").count() == 4
    assert page.locator("text.value").all_text_contents() == ["one", "other"]
    box = page.locator("svg").bounding_box()
    assert box is not None
    for text in page.locator("text").all():
        inside = text.bounding_box()
        assert inside["x"] >= box["x"] - 1
        assert inside["y"] >= box["y"] - 1
        assert inside["x"] + inside["width"] <= box["x"] + box["width"] + 1
        assert inside["y"] + inside["height"] <= box["y"] + box["height"] + 1
    assert (file.parent / "table.md").read_text() == table + "\n"
    assert problems == []


def test_without_results_there_is_nothing_to_show(tmp_path):
    with pytest.raises(RunError, match=r"no run of .*shown has been evaluated yet"):
        write_ablation(Ablation(config_of(dir=str(tmp_path), base=str(TINY)), tmp_path, "shown"))


def write_run(directory, seed):
    """What a finished run leaves for the page."""
    directory.mkdir(parents=True)
    results = [result_at(step, [0.0, 1.0, step / 10]) for step in (0, 5, 10)]
    (directory / "evaluations.jsonl").write_text("".join(json.dumps(result.to_dict()) + "\n" for result in results))
    log = MetricLog(directory / "metrics.jsonl")
    for step in range(1, 11):
        log.write("rl", step, reward_mean=0.1 * step, seconds=1.0, entropy=0.5, response_length_mean=20.0 + seed)
    log.close()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_guide_has_the_command_the_table_and_the_picture_of_every_packaged_ablation(file):
    guide = (DOCS / "ablations.md").read_text()
    assert f"glmcore rl ablate recipes/ablations/{file.name}\n" in guide
    [section] = re.findall(rf"^## {file.stem.replace('-', ' ').capitalize()}$(.*?)(?=^## |\Z)", guide, re.M | re.S)
    assert f"](ablations/{file.stem}.svg)" in section
    config, _ = load_ablation([str(file)])
    rows = re.findall(r"^\| ([\w.-]+) \|", section, re.M)
    assert rows == ["arm", "---", *(arm.name for arm in config.arms)]
    picture = (DOCS / "ablations" / f"{file.stem}.svg").read_text()
    assert [arm.name in picture for arm in config.arms] == [True, True]
