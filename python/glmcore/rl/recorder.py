"""Writes the tokens of an episode into the trajectory buffer as they come."""

from collections.abc import Sequence
from itertools import groupby, pairwise

import numpy as np
import numpy.typing as npt

from glmcore.rl.episode_record import Recorder, Row
from glmcore.trajectory import TrajectoryBuffer


class BufferRecorder:
    """Takes down one conversation as a rollout of the buffer, in spans of one policy version.

    What the model reads is held back until its answer comes, and gets the version that the answer begins with: an
    observation is as old as the policy that reads it.
    """

    def __init__(self, buffer: TrajectoryBuffer, rollout_id: int) -> None:
        self._buffer = buffer
        self._rollout_id = rollout_id
        self._given: list[npt.NDArray[np.int32]] = []

    def prompt(self, ids: Sequence[int] | npt.NDArray[np.int32]) -> None:
        """Tokens that the model reads before its next answer: the opening, or observations."""
        self._given.append(np.asarray(ids, np.int32))

    def answer(self, ids: Sequence[int], logprobs: Sequence[float], versions: Sequence[int]) -> None:
        """A whole answer as it was sampled; a log-probability and a version for each token.

        Raises:
            TrajectoryError: The rollout has ended meanwhile, or the log cannot be written.
        """
        if self._given:
            given = np.concatenate(self._given)
            self._given.clear()
            zeros = np.zeros(len(given), np.float32)
            self._append(given, np.zeros(len(given), np.uint8), zeros, versions[0], ends_turn=True)
        tokens, told = np.asarray(ids, np.int32), np.asarray(logprobs, np.float32)
        start = 0
        for version, run in groupby(versions):
            end = start + sum(1 for _ in run)
            ones = np.ones(end - start, np.uint8)
            self._append(tokens[start:end], ones, told[start:end], version, ends_turn=end == len(tokens))
            start = end

    def _append(
        self,
        ids: npt.NDArray[np.int32],
        mask: npt.NDArray[np.uint8],
        logprobs: npt.NDArray[np.float32],
        version: int,
        *,
        ends_turn: bool,
    ) -> None:
        self._buffer.append_tokens(self._rollout_id, ids, mask, logprobs, version, ends_turn=ends_turn)


def record_row(row: Row, recorder: Recorder) -> None:
    """Have a conversation taken down that another recorder has taken down."""
    for start, end in pairwise(row.turns):
        if row.loss_mask[start]:
            recorder.answer(row.ids[start:end], row.logprobs[start:end], row.versions[start:end])
        else:
            recorder.prompt(row.ids[start:end])


def spans_of(row: Row) -> list[tuple[int, int, bool]]:
    """The spans in which `BufferRecorder` would write a conversation: tokens, version, whether a turn ends with them.

    What was read after the last answer is not among them.
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
    return spans
