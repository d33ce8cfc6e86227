"""From the tokens of an episode to a rollout of the trajectory buffer."""

from itertools import groupby, pairwise

from glmcore.rl.episode_record import Recorder, Row
from glmcore.trajectory import WholeRollout


def record_row(row: Row, recorder: Recorder) -> None:
    """Have a conversation taken down that another recorder has taken down."""
    for start, end in pairwise(row.turns):
        if row.loss_mask[start]:
            recorder.answer(row.ids[start:end], row.logprobs[start:end], row.versions[start:end])
        else:
            recorder.prompt(row.ids[start:end])


def whole_rollout(rollout_id: int, row: Row, reward: float | None, reason: str, extra: bytes = b"") -> WholeRollout:
    """A conversation as a rollout of the buffer, in spans of one policy version.

    What the model reads has the version that the answer to it begins with: an observation is as old as the policy that
    reads it. What was read after the last answer is left out.
    """
    spans: list[tuple[int, int, bool]] = []
    given = 0
    for start, end in pairwise(row.turns):
        if not row.loss_mask[start]:
            given += end - start
            continue
        versions = row.versions[start:end]
        if given:
            spans.append((given, versions[0], True))
            given = 0
        runs = [(len(list(run)), version) for version, run in groupby(versions)]
        spans += [(count, version, place == len(runs) - 1) for place, (count, version) in enumerate(runs)]
    end = len(row.ids) - given
    return WholeRollout(
        rollout_id, row.ids[:end], row.loss_mask[:end], row.logprobs[:end], spans, reward, reason, extra
    )
