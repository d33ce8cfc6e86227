"""Texts scored in one pass."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_model import packed, random_model

from glmcore.engine import scoring
from glmcore.engine.engine import Engine
from glmcore.engine.scoring import score_text
from glmcore.errors import RequestError

MODEL = random_model(torch.float32)


@settings(max_examples=20)
@given(ids=st.lists(st.integers(0, 63), min_size=1, max_size=30), rows=st.integers(1, 8), num_top=st.integers(0, 3))
def test_scores_are_those_of_each_prefix_on_its_own(ids, rows, num_top):
    whole, scoring.ROWS = scoring.ROWS, rows
    try:
        scores = score_text(MODEL, ids, num_top)
    finally:
        scoring.ROWS = whole
    assert scores.logprobs[0] is scores.top_logprobs[0] is None
    for place in range(1, len(ids)):
        _, positions, layout = packed([place])
        with torch.no_grad():
            hidden = MODEL(torch.tensor(ids[:place]), positions, layout).hidden[-1]
            expected = MODEL.logits(hidden).log_softmax(-1)
        # Sums over up to 64 float32 terms in another order: some 1e-6 in a log-probability.
        assert scores.logprobs[place] == pytest.approx(float(expected[ids[place]]), abs=1e-4)
        top = scores.top_logprobs[place]
        assert list(top.values()) == sorted(top.values(), reverse=True)
        assert list(top.values()) == pytest.approx(expected.topk(num_top).values.tolist(), abs=1e-4)


def test_texts_that_do_not_fit_are_refused():
    engine = Engine(MODEL, stop_token_ids=[1])
    assert len(engine.score([3, 4, 5]).logprobs) == 3
    for ids in ([], [64], [3] * 128):
        with pytest.raises(RequestError):
            engine.score(ids)
