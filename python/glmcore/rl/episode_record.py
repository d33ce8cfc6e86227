"""What an episode leaves behind: rows of tokens to train on, and a record of the rest that the buffer keeps.

A sub-agent's conversation is a row of its own. The buffer admits a fixed number of rollouts to a group, so branches
travel as `extra` of the rollout that they belong to and become further samples of its group when they are read. That
keeps the buffer's bound on staleness: a branch begins after its rollout has sampled the call for it, so no token of a
branch is older than the oldest token of its rollout.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import orjson

from glmcore.errors import TrajectoryError
from glmcore.rl.expert_trace import Experts, layouts, read
from glmcore.trajectory import Sample

_FORMAT = 1


class Recorder(Protocol):
    """Takes down the tokens of one conversation, in order."""

    def prompt(self, ids: Sequence[int] | npt.NDArray[np.int32]) -> None:
        """Tokens that the model reads before its next answer: the opening, or observations."""
        ...

    def answer(self, ids: Sequence[int], logprobs: Sequence[float], versions: Sequence[int]) -> None:
        """A whole answer as it was sampled, its stop token included; a log-probability and a version for each."""
        ...


@dataclass
class Row:
    """A recorder in memory."""

    ids: list[int] = field(default_factory=list[int])
    loss_mask: list[int] = field(default_factory=list[int])
    logprobs: list[float] = field(default_factory=list[float])
    versions: list[int] = field(default_factory=list[int])
    """Of given tokens, that of the sampled token before them, or after them if there is none."""
    turns: list[int] = field(default_factory=lambda: [0])
    """Where turns begin and, last, where the last one ends."""

    def prompt(self, ids: Sequence[int] | npt.NDArray[np.int32]) -> None:
        """See `Recorder.prompt`."""
        version = self.versions[-1] if self.versions else -1
        self._add(ids.tolist() if isinstance(ids, np.ndarray) else list(ids), 0, [0.0] * len(ids), [version] * len(ids))

    def answer(self, ids: Sequence[int], logprobs: Sequence[float], versions: Sequence[int]) -> None:
        """See `Recorder.answer`."""
        if self.versions and self.versions[0] == -1:
            self.versions = [versions[0]] * len(self.versions)
        self._add(list(ids), 1, list(logprobs), list(versions))

    def _add(self, ids: list[int], learned: int, logprobs: list[float], versions: list[int]) -> None:
        self.ids += ids
        self.loss_mask += [learned] * len(ids)
        self.logprobs += logprobs
        self.versions += versions
        self.turns.append(len(self.ids))


@dataclass(frozen=True)
class Branch:
    """The conversation of a sub-agent."""

    row: Row
    finish_reason: str
    reward: float | None
    """Its own; None if it shares that of its rollout."""
    experts: Experts | None = None
    """Of its tokens, if the engine recorded them."""


@dataclass(frozen=True)
class EpisodeRecord:
    """What the buffer keeps of an episode beside the tokens of its main conversation."""

    turn_rewards: list[float] = field(default_factory=list[float])
    """Reward of each message of the assistant; their sum is the reward of the rollout."""
    parts: dict[str, float] = field(default_factory=dict[str, float])
    """What the reward was made of."""
    branches: list[Branch] = field(default_factory=list[Branch])
    experts: Experts | None = None
    """Of the tokens of the main conversation, if the engine recorded them."""
    temperature: float | None = None
    """That its tokens were drawn at, where that may not be the one of the step that trains on them."""

    def to_bytes(self) -> bytes:
        """For `extra` of `TrajectoryBuffer.finish`: a line of JSON, the arrays of the branches, then experts."""
        recorded = [self.experts, *[branch.experts for branch in self.branches]]
        header: dict[str, Any] = {
            "format": _FORMAT,
            "turn_rewards": self.turn_rewards,
            "parts": self.parts,
            "temperature": self.temperature,
            "branches": [
                {
                    "tokens": len(branch.row.ids),
                    "turns": branch.row.turns,
                    "finish_reason": branch.finish_reason,
                    "reward": branch.reward,
                }
                for branch in self.branches
            ],
        }
        arrays = [array.tobytes() for branch in self.branches for array in _arrays(branch.row)]
        if any(experts is not None for experts in recorded):
            header["experts"] = layouts(recorded)
            arrays += [experts.tobytes() for experts in recorded if experts is not None]
        return orjson.dumps(header) + b"\n" + b"".join(arrays)

    @classmethod
    def from_bytes(cls, data: bytes) -> "EpisodeRecord":
        """The record in `Sample.extra`; an empty one for no bytes.

        Raises:
            TrajectoryError: The bytes are none of `to_bytes`.
        """
        if not data:
            return cls()
        line, _, rest = data.partition(b"\n")
        try:
            header: dict[str, Any] = orjson.loads(line)
            if header["format"] != _FORMAT:
                raise TrajectoryError(f"the record of an episode has format {header['format']}, not {_FORMAT}")
            branches: list[Branch] = []
            for about in header["branches"]:
                row, rest = _read_row(rest, about["tokens"], about["turns"])
                branches.append(Branch(row, about["finish_reason"], about["reward"]))
            data_left, recorded = memoryview(rest), []
            for layout in header.get("experts", []):
                experts, data_left = read(layout, data_left)
                recorded.append(experts)
        except (KeyError, TypeError, ValueError) as error:
            raise TrajectoryError(f"the record of an episode cannot be read: {error!r}") from None
        if not recorded:
            return cls(header["turn_rewards"], header["parts"], branches, None, header.get("temperature"))
        told = zip(branches, recorded[1:], strict=True)
        branches = [replace(branch, experts=experts) for branch, experts in told]
        return cls(header["turn_rewards"], header["parts"], branches, recorded[0], header.get("temperature"))


_DTYPES: Mapping[str, str] = {"ids": "<i4", "loss_mask": "u1", "logprobs": "<f4", "versions": "<i4"}


def _arrays(row: Row) -> list[npt.NDArray[Any]]:
    return [np.asarray(getattr(row, name), dtype) for name, dtype in _DTYPES.items()]


def _read_row(data: bytes, count: int, turns: list[int]) -> tuple[Row, bytes]:
    columns: dict[str, list[Any]] = {}
    for name, dtype in _DTYPES.items():
        size = count * np.dtype(dtype).itemsize
        columns[name] = np.frombuffer(data[:size], dtype, count).tolist()
        data = data[size:]
    return Row(**columns, turns=turns), data


def with_branches(samples: Sequence[Sample]) -> list[Sample]:
    """Samples with the conversations of their sub-agents behind each, as further samples of the same group.

    Failed rollouts have none. A branch has its own reward if it was judged, else that of its rollout.
    """
    rows: list[Sample] = []
    for sample in samples:
        rows.append(sample)
        if sample.failed is None:
            record = EpisodeRecord.from_bytes(sample.extra)
            rows += [_sample(sample, branch, record.temperature) for branch in record.branches]
    return rows


def temperatures(samples: Sequence[Sample], default: float) -> list[float]:
    """What the tokens of each sample were drawn at; `default` where nothing was recorded."""
    recorded = [EpisodeRecord.from_bytes(sample.extra).temperature for sample in samples]
    return [default if temperature is None else temperature for temperature in recorded]


def _sample(parent: Sample, branch: Branch, temperature: float | None) -> Sample:
    kept = EpisodeRecord(experts=branch.experts, temperature=temperature)
    ids, loss_mask, logprobs, versions = _arrays(branch.row)
    return parent._replace(
        ids=ids,
        loss_mask=loss_mask,
        logprobs=logprobs,
        policy_versions=versions,
        reward=parent.reward if branch.reward is None else branch.reward,
        finish_reason=branch.finish_reason,
        turns=np.asarray(branch.row.turns, np.int32),
        extra=b"" if branch.experts is None and temperature is None else kept.to_bytes(),
    )
