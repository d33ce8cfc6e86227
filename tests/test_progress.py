import os
import pty
import subprocess
import sys

from glmcore.progress import progress, say

WORK = """
from glmcore.progress import progress
with progress("train general", total=200, unit="tokens") as bar:
    bar.advance(200, loss=1.5)
"""


def test_away_from_a_terminal_there_are_plain_lines_on_stderr(capsys):
    with progress("train general", total=200, unit="tokens") as bar:
        bar.skip(100)
        bar.advance(100, loss=1.5)
        say("a word")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("a word\ntrain general")
    assert "200  / 200 tokens" in captured.err
    assert "loss 1.5" in captured.err
    assert "\x1b" not in captured.err


def test_what_an_earlier_run_did_is_not_in_the_rate():
    with progress("quiet", total=10**12, unit="steps", shown=False) as bar:
        bar.skip(10**12 - 1)
        bar.advance(1)
        assert bar.done == 10**12
        assert bar.rate < 10**9


def test_on_a_terminal_there_is_a_moving_bar_with_rate():
    ours, theirs = pty.openpty()
    done = subprocess.run([sys.executable, "-c", WORK], stderr=theirs, check=True, timeout=60, stdout=subprocess.PIPE)
    shown = os.read(ours, 65_536).decode()
    os.close(ours)
    os.close(theirs)
    assert done.stdout == b""
    assert "\x1b[" in shown
    assert "tokens/s" in shown
    assert "loss 1.5" in shown


def test_slow_work_has_a_rate_too(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    with progress("train rl", total=60, unit="steps") as bar:
        now[0] = 100.0
        bar.advance(37)
    assert "0.37/s" in capsys.readouterr().err
