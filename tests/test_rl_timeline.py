import json
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glmcore.rl.timeline import Timeline, busy_share, mean_busy, read_trace

INTERVAL = st.tuples(st.integers(0, 40), st.integers(0, 40)).map(sorted).map(tuple)


@settings(max_examples=200)
@given(intervals=st.lists(INTERVAL, max_size=12), window=INTERVAL)
def test_utilisation_is_what_counting_moments_gives(intervals, window):
    start, end = window
    moments = [sum(begin <= t < finish for begin, finish in intervals) for t in range(start, end)]
    if not moments:
        assert busy_share(intervals, window) == mean_busy(intervals, window) == 0
        return
    assert busy_share(intervals, window) == pytest.approx(sum(map(bool, moments)) / len(moments))
    assert mean_busy(intervals, window) == pytest.approx(sum(moments) / len(moments))


def test_work_that_spans_windows_counts_in_each_and_is_written_once(tmp_path):
    timeline = Timeline(tmp_path / "trace.json")
    with timeline.busy("trainer", "step 1"):
        first = timeline.cut()
        with timeline.busy("engine", "generate"):
            pass
    second = timeline.cut()
    third = timeline.cut()
    [(begun, ended)] = first.intervals["trainer"]
    assert first.window[0] <= begun <= ended == first.window[1]
    assert second.intervals["trainer"][0][0] == second.window[0]
    assert third.utilisation("trainer") == third.utilisation("engine") == 0.0
    events = read_trace(tmp_path / "trace.json")
    assert [event["name"] for event in events if event["ph"] == "X"] == ["step 1", "generate"]
    assert {event["args"]["name"] for event in events if event["ph"] == "M"} == {"trainer", "engine"}


def test_work_at_the_same_time_is_in_rows_of_its_own_and_rows_are_used_again(tmp_path):
    timeline = Timeline(tmp_path / "trace.json")
    begun, ready = threading.Event(), threading.Barrier(4)

    def work():
        with timeline.busy("environments", "step"):
            ready.wait()
            begun.wait()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    ready.wait()
    begun.set()
    for thread in threads:
        thread.join()
    with timeline.busy("environments", "step"):
        pass
    timeline.cut()
    rows = [event["tid"] for event in read_trace(tmp_path / "trace.json") if event["ph"] == "X"]
    assert sorted(rows) == [0, 0, 1, 2]


def test_a_trace_is_json_once_its_array_is_closed(tmp_path):
    timeline = Timeline(tmp_path / "trace.json")
    with timeline.busy("engine", "generate"):
        pass
    timeline.cut()
    text = (tmp_path / "trace.json").read_text()
    assert len(json.loads(text.rstrip().rstrip(",") + "]")) == 2
    with (tmp_path / "trace.json").open("a") as file:
        file.write('{"name": "cut sh')
    assert len(read_trace(tmp_path / "trace.json")) == 2
