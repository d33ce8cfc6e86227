"""The report page as a browser shows it."""

import json
import math

import pytest

from glmcore.errors import RunError
from glmcore.metrics import MetricLog
from glmcore.report import format_table, summarize, write_report

HOSTILE = "<script>document.title = 'taken'</script> \"'&\u4f60"


def make_run(directory):
    """A run with two stages and RL, its figures known."""
    directory.mkdir()
    (directory / "recipe.toml").write_text('[run]\ndir = "x"  # <b>\n')
    log = MetricLog(directory / "metrics.jsonl")
    for stage, first in (("general", 9.0), ("sft", 3.0)):
        for step in range(1, 21):
            log.write(
                stage, step, loss=first - 0.1 * step, mtp_loss=first, learning_rate=1e-3 * step, grad_norm=1.0,
                tokens=100, tokens_per_s=50.0, seconds=2.0, peak_gib=1.5, max_violation=0.5,
                expert_load=[[0.25, 0.75], [0.5, 0.5]], dead_experts=1, mfu=0.25,
                **({"validation_loss": {"prose": first, HOSTILE: first - 1.0}} if step % 5 == 0 else {}),
                **({"skipped": True} if step == 7 else {}),
            )  # fmt: skip
    for step in range(1, 11):
        log.write(
            "rl", step, reward_mean=step / 10, reward_std=0.1, loss=0.0, tokens=10, tokens_per_s=5.0, seconds=1.0,
            peak_gib=1.6, response_length_mean=20.0 + step,
        )  # fmt: skip
    stations = [
        {"name": name, "seconds": 40.0, "tokens": 2000, "tokens_per_s": 50.0, "note": "n"}
        for name in ("general", "sft")
    ]
    reward = {
        "before": {"mean": 0.25, "low": 0.2, "high": 0.3, "n": 100},
        "after": {"mean": 0.75, "low": 0.7, "high": 0.8, "n": 100},
    }
    content = {
        "stations": stations,
        "rl": {**reward, "seconds": 10.0},
        "machine": {"cpu": "a cpu", "cores": 2, "torch": "2", "date": "d"},
    }
    (directory / "stations.json").write_text(json.dumps(content))
    samples = [
        {"when": "before rl", "question": HOSTILE, "reply": f"<think>{HOSTILE}</think>", "answer": "7", "reward": 1.0},
        {"when": "after rl", "question": "2 + 2", "reply": "5", "answer": "4", "reward": 0.0},
    ]
    (directory / "samples.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    return directory


def show(browser, page_file, width=960):
    page = browser.new_page(viewport={"width": width, "height": 900})
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith("file://") else problems.append(request.url))
    page.goto(page_file.as_uri())
    return page, problems


def test_the_page_shows_figures_charts_and_samples(browser, tmp_path):
    page, problems = show(browser, write_report(make_run(tmp_path / "demo")))
    assert page.inner_text("h1") == "Run demo"
    assert page.title() == "glmcore run demo"
    text = page.inner_text("body")
    for heading in (
        "Stations",
        "Loss",
        "Validation",
        "Learning rate and batch",
        "Gradient",
        "Expert load",
        "Reward",
        "Throughput",
        "Memory",
        "Samples",
        "Recipe",
    ):
        assert heading in page.locator("h2").all_inner_texts()
    assert "0.750" in text
    rows = page.locator("#stations tr").all_inner_texts()
    assert rows[1].split("\t")[:6] == ["general", "40.0", "2,000", "50", "8.700", "7.200"]
    assert rows[1].split("\t")[6].startswith("prose 9.000, ")
    assert "Skipped, since loss or gradient leapt: general 7, sft 7." in text
    assert "0.250 [0.200, 0.300]" in text
    assert problems == []


def test_suites_and_curriculum_are_shown_where_there_are_any(browser, tmp_path):
    run = make_run(tmp_path / "demo")
    interval = {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 8}
    results = [
        {"suite": HOSTILE, "step": step, "num_samples": 4, "avg": interval, "pass_at": {"1": interval, "4": interval},
         "length_mean": 20.0, "truncated": 0.0, "short": 0.25}
        for step in (0, 5, 10)
    ]  # fmt: skip
    (run / "evaluations.jsonl").write_text("".join(json.dumps(result) + "\n" for result in results))
    log = MetricLog(run / "metrics.jsonl")
    for step in range(11, 21):
        log.write(
            "rl", step, reward_mean=0.5, loss=0.0, tokens=10, tokens_per_s=5.0, seconds=1.0, peak_gib=1.6,
            response_length_mean=20.0, teaching_groups=0.1 * (step - 10), temperature=1.0, tasks_easy=step,
            entropy=0.5, kl_behaviour=0.01,
        )  # fmt: skip
    page, problems = show(browser, write_report(run))
    headings = page.locator("h2").all_inner_texts()
    assert {"Suites", "Curriculum", "Policies"} <= set(headings)
    rows = page.locator("#suites tr").all_inner_texts()
    assert [row.split("\t")[1:3] for row in rows[1:]] == [[step, "0.500 [0.400, 0.600], k = 4"] for step in ("0", "10")]
    assert page.locator("polygon.range").count() == 2
    labels = page.locator("svg[role=img]").evaluate_all(
        "charts => charts.map(chart => chart.getAttribute('aria-label'))"
    )
    assert "Tasks of each difficulty by RL step" in labels
    assert "Sampling temperature by RL step" not in labels  # it never changed
    assert page.title() == "glmcore run demo"
    assert problems == []


def test_every_chart_has_its_points_inside_its_frame(browser, tmp_path):
    page, _ = show(browser, write_report(make_run(tmp_path / "demo")))
    charts = page.locator("svg[role=img]")
    assert charts.count() == 14
    lines = page.locator("polyline.line")
    assert lines.count() == 14
    counts = [len(line.get_attribute("points").split()) for line in lines.all()]
    assert counts == [40, 40, 8, 8, 40, 40, 40, 40, 40, 10, 10, 50, 40, 50]
    for line in lines.all():
        box, frame = line.bounding_box(), line.locator("xpath=..").bounding_box()
        assert frame["x"] <= box["x"]
        assert box["x"] + box["width"] <= frame["x"] + frame["width"] + 1
        assert frame["y"] <= box["y"]
        assert box["y"] + box["height"] <= frame["y"] + frame["height"] + 1
    assert page.locator("rect.cell").count() == 4
    assert page.locator("rect.bar").count() == 2


def test_what_a_model_wrote_is_shown_and_not_run(browser, tmp_path):
    page, problems = show(browser, write_report(make_run(tmp_path / "demo")))
    sample = page.locator("details.sample").first
    assert HOSTILE in sample.locator("summary").inner_text()
    sample.locator("summary").click()
    assert f"<think>{HOSTILE}</think>" in sample.locator("pre").first.inner_text()
    assert page.title() == "glmcore run demo"
    assert page.locator("details.sample .wrong").count() == 1
    assert problems == []


def test_a_narrow_screen_needs_no_sideways_scrolling(browser, tmp_path):
    page, _ = show(browser, write_report(make_run(tmp_path / "demo")), width=400)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400


def test_a_run_that_has_just_begun_says_what_is_missing(browser, tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "recipe.toml").write_text("[run]\n")
    page, problems = show(browser, write_report(tmp_path / "new"))
    assert page.locator(".missing").count() >= 6
    assert page.locator("polyline").count() == 0
    assert problems == []
    assert summarize(tmp_path / "new")["rl"] is None


def test_the_summary_and_tables_hold_the_figures(tmp_path):
    summary = summarize(make_run(tmp_path / "demo"))
    general = summary["stages"][0]
    assert (general["seconds"], general["tokens"], general["tokens_per_s"]) == (40.0, 2000, 50.0)
    assert general["loss_first"] == pytest.approx(9.0 - 0.3)
    assert general["loss_last"] == pytest.approx(9.0 - 1.8)
    assert (general["mfu"], general["skipped"], general["validation_loss"]["prose"]) == (0.25, 1, 9.0)
    assert summary["rl"]["after"]["mean"] == 0.75
    assert "8.70 to 7.20" in format_table(summary)
    assert format_table(summary, markdown=True).splitlines()[1].startswith("| --- | ---: |")


def test_a_directory_that_is_no_run_is_named(tmp_path):
    with pytest.raises(RunError, match="is not a run directory"):
        summarize(tmp_path)


def test_a_metric_line_cut_short_is_dropped_and_resuming_repeats_its_step(tmp_path):
    log = MetricLog(tmp_path / "metrics.jsonl")
    for stage, step in (("a", 1), ("a", 2), ("a", 3), ("b", 1)):
        log.write(stage, step, loss=math.nan)
    with log.path.open("a") as file:
        file.write('{"stage": "b", "st')
    assert [(r["stage"], r["step"]) for r in log.read()] == [("a", 1), ("a", 2), ("a", 3), ("b", 1)]
    assert log.read()[0]["loss"] is None
    log.truncate_after("a", 1)
    assert [(r["stage"], r["step"]) for r in log.read()] == [("a", 1)]
    log.write("a", 2, loss=1.0)
    assert [r["step"] for r in log.read()] == [1, 2]
    log.path.write_text('{"stage"\n{"stage": "a", "step": 1}\n')
    with pytest.raises(RunError, match=r"metrics.jsonl:1: not a JSON record"):
        log.read()
