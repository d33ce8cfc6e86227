"""The trajectory viewer as a browser shows it, and the log that it is made from."""

import json

import numpy as np
import pytest
from test_report import HOSTILE, show

from glmcore.errors import RunError
from glmcore.report.trajectories import write_viewer
from glmcore.rl.trajectory_log import TrajectoryLog
from glmcore.rl.trajectory_log_config import TrajectoryLogConfig
from glmcore.tokenizer import train_tokenizer
from glmcore.trajectory import Sample


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["one two three four five", HOSTILE] * 20, vocab_size=320, progress=False)


def sample_of(tokenizer, group, rollout, answer, reward, task="sums/1", failed=None):
    prompt, ids = tokenizer.encode("one two"), tokenizer.encode(answer)
    mask = np.array([0] * len(prompt) + [1] * len(ids), np.uint8)
    return Sample(
        group_id=group,
        rollout_id=rollout,
        task=task,
        ids=np.array(prompt + ids, np.int32),
        loss_mask=mask,
        logprobs=np.where(mask, -0.5, 0.0).astype(np.float32),
        policy_versions=np.where(mask, 3, 0).astype(np.int32),
        reward=reward,
        finish_reason="length" if reward < 0.5 else "stop",
        failed=failed,
        turns=np.array([0, len(mask)], np.int32),
    )


def record(log, step, version, samples):
    chosen = log.choose(samples)
    picked = [samples[i] for i in chosen]
    advantages = np.array([sample.reward - 0.5 for sample in picked])
    log.record(step, version, picked, advantages, [np.full(int(s.loss_mask.sum()), -0.75) for s in picked])


@pytest.fixture
def run(tmp_path, tokenizer):
    directory = tmp_path / "demo"
    directory.mkdir()
    (directory / "recipe.toml").write_text("[run]\n")
    (directory / "tokenizer").mkdir()
    tokenizer.save(str(directory / "tokenizer"))
    log = TrajectoryLog(directory / "shown", TrajectoryLogConfig(every_steps=2, groups=2))
    for step in (2, 4):
        samples = [
            sample_of(tokenizer, 7, 1, f"three four {HOSTILE}", 1.0),
            sample_of(tokenizer, 7, 2, "three five", 0.0),
            sample_of(tokenizer, 8, 3, "five four", 0.5, task=f"hard </script> {step}", failed="the sandbox broke"),
            sample_of(tokenizer, 9, 4, "four", 1.0, task="never kept"),
        ]
        record(log, step, 5, samples)
    return directory


def test_all_that_was_kept_is_listed_and_filtered(browser, run):
    page, problems = show(browser, write_viewer(run))
    assert page.inner_text("h1") == "Trajectories of demo"
    assert page.inner_text("#counts") == "6 of 6 trajectories"
    assert page.locator("nav h3").first.inner_text() == "step 4, group 7: sums/1"
    for field, value, left in (("#outcome", "right", 2), ("#outcome", "cut", 2), ("#outcome", "failed", 2)):
        page.select_option(field, value)
        assert page.locator("nav button").count() == left
    page.select_option("#outcome", "all")
    page.select_option("#step", "2")
    assert page.locator("nav button").count() == 3
    page.fill("#text", "</SCRIPT> 2")
    assert page.locator("nav button").count() == 1
    page.fill("#text", "nowhere")
    assert page.locator("nav").inner_text() == "nothing fits the filters"
    assert problems == []


def test_a_conversation_shows_who_said_what_and_runs_nothing_of_it(browser, run):
    page, problems = show(browser, write_viewer(run))
    assert page.locator("article .who").all_inner_texts() == ["given", "model"]
    given, answer = page.locator("article .tokens").all_inner_texts()
    assert given == "one two"
    # A character whose bytes are several tokens is shown by its bytes.
    assert answer.replace("\\xe4\\xbd\\xa0", "\u4f60") == f"three four {HOSTILE}"
    assert page.title() == "Trajectories of demo"
    assert "ended by stop" in page.inner_text("article")
    assert problems == []


def colours(page, box=0):
    """The colours of a trajectory's sampled tokens, without how strong they are."""
    spans = page.locator("article").nth(box).locator(".tokens span:not(.given)")
    return {style.split(",")[0] for style in spans.evaluate_all("spans => spans.map(span => span.style.background)")}


LOW, HIGH = "rgba(var(--low)", "rgba(var(--high)"


def test_tokens_are_coloured_by_what_is_chosen(browser, run):
    page, _ = show(browser, write_viewer(run))
    assert colours(page) == {HIGH}
    for choice, expected in (("logprobs", LOW), ("difference", LOW), ("staleness", LOW), ("none", "")):
        page.select_option("#colour", choice)
        assert colours(page) == {expected}, choice
    page.locator("nav button").nth(1).click()
    page.select_option("#colour", "advantage")
    assert colours(page) == {LOW}


def test_two_samples_of_a_group_stand_side_by_side_with_their_first_difference(browser, run):
    page, problems = show(browser, write_viewer(run), width=1200)
    options = page.locator("#other option").all_inner_texts()
    assert options == ["nothing", "rollout 2, reward 0"]
    page.select_option("#other", label="rollout 2, reward 0")
    boxes = [page.locator("article").nth(i).bounding_box() for i in range(2)]
    assert boxes[0]["y"] == boxes[1]["y"]
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]
    places = page.locator(".differs").evaluate_all("spans => spans.map(span => span.dataset.place)")
    assert len(places) == 2
    assert len(set(places)) == 1
    assert colours(page, 1) == {LOW}
    assert problems == []


def test_figures_of_a_token_can_be_read_with_the_keyboard_alone(browser, run):
    page, _ = show(browser, write_viewer(run))
    page.locator("#other").focus()
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.dataset.place !== undefined"):
            break
    page.keyboard.press("ArrowRight")
    about = page.inner_text("#about")
    assert "log-prob when sampled -0.5, of the trainer -0.75, advantage +0.5, staleness 2" in about
    page.keyboard.press("Home")
    assert "given, not sampled" in page.inner_text("#about")
    assert page.locator("#about").get_attribute("aria-live") == "polite"
    unnamed = page.locator("select, input").evaluate_all("fields => fields.filter(f => !f.labels.length).length")
    assert unnamed == 0


def test_a_narrow_screen_needs_no_sideways_scrolling(browser, run):
    page, _ = show(browser, write_viewer(run), width=360)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_the_page_keeps_to_its_size_with_the_newest_groups_whole(run):
    whole = write_viewer(run).stat().st_size
    newest = run / "shown" / "00000004.jsonl"
    small = write_viewer(run, max_bytes=newest.stat().st_size + 200)
    text = small.read_text()
    data = json.loads(text.split('id="data">')[1].split("</script>")[0])
    assert small.stat().st_size < whole
    assert data["left_out"] == 6 - len(data["samples"])
    assert data["left_out"] > 0
    assert {sample["step"] for sample in data["samples"]} == {4}
    assert [sample["group"] for sample in data["samples"]] == [7, 7, 8]


def test_the_log_keeps_due_steps_and_groups_that_differ_most_and_drops_the_oldest(tmp_path, tokenizer):
    log = TrajectoryLog(tmp_path / "shown", TrajectoryLogConfig(every_steps=3, groups=1, keep_steps=2))
    assert [step for step in range(1, 10) if log.is_due(step)] == [1, 3, 6, 9]
    assert not TrajectoryLog(tmp_path, TrajectoryLogConfig(groups=0)).is_due(1)
    samples = [sample_of(tokenizer, g, 10 * g + r, "one", float(g == 2 and r)) for g in (1, 2, 3) for r in (0, 1)]
    assert log.choose(samples).tolist() == [2, 3]
    for step in (1, 3, 6):
        record(log, step, step - 1, samples)
    assert sorted(file.name for file in (tmp_path / "shown").iterdir()) == ["00000003.jsonl", "00000006.jsonl"]


def test_a_run_without_trajectories_is_told_what_to_do(tmp_path):
    with pytest.raises(RunError, match="not a run directory"):
        write_viewer(tmp_path)
    (tmp_path / "recipe.toml").write_text("[run]\n")
    with pytest.raises(RunError, match=r"rl\.trajectory_log"):
        write_viewer(tmp_path)
