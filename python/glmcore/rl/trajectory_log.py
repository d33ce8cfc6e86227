"""Trajectories that are kept to be looked at: what was sampled, what the trainer made of it, token by token."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from glmcore.durable import write_file
from glmcore.rl.trajectory_log_config import TrajectoryLogConfig
from glmcore.trajectory import Sample


class TrajectoryLog:
    """Keeps some groups of some steps: a file `STEP.jsonl` for each, a line for each sample.

    Args:
        directory: Made when the first step is kept.
        config: How many of how many.
    """

    def __init__(self, directory: Path, config: TrajectoryLogConfig) -> None:
        self.directory = directory
        self.config = config

    def is_due(self, step: int) -> bool:
        """Whether a step, counted from 1, is to be kept."""
        return self.config.groups > 0 and (step == 1 or step % self.config.every_steps == 0)

    def choose(self, samples: Sequence[Sample]) -> np.ndarray:
        """Places of the samples to keep, int [K]: whole groups, those with the most different rewards first."""
        ids = np.array([sample.group_id for sample in samples])
        rewards = np.array([sample.reward for sample in samples])
        groups = sorted(set(ids.tolist()), key=lambda group: (-float(rewards[ids == group].std()), group))
        return np.flatnonzero(np.isin(ids, groups[: self.config.groups]))

    def record(
        self,
        step: int,
        version: int,
        samples: Sequence[Sample],
        advantages: np.ndarray,
        logprobs: Sequence[np.ndarray],
    ) -> None:
        """Write what is known of the samples of a step, and remove the oldest steps.

        Args:
            step: Counted from 1.
            version: Of the policy that is trained, when the step begins.
            samples: Whole groups.
            advantages: Of each sample, [N].
            logprobs: What the trainer's policy says of each sample's tokens with `loss_mask`, N arrays.
        """
        self.directory.mkdir(exist_ok=True)
        lines = [
            json.dumps(_line(step, version, sample, float(advantage), theirs))
            for sample, advantage, theirs in zip(samples, advantages, logprobs, strict=True)
        ]
        write_file(self.directory / f"{step:08d}.jsonl", "".join(f"{line}\n" for line in lines))
        for old in sorted(self.directory.glob("[0-9]*.jsonl"))[: -self.config.keep_steps]:
            old.unlink()


def _line(step: int, version: int, sample: Sample, advantage: float, logprobs: np.ndarray) -> dict[str, Any]:
    sampled = sample.loss_mask != 0
    trainer = np.zeros(len(sample.ids), np.float64)
    trainer[sampled] = logprobs
    staleness = np.where(sampled, version - sample.policy_versions, 0)
    return {
        "step": step,
        "version": version,
        "group": sample.group_id,
        "rollout": sample.rollout_id,
        "task": sample.task,
        "reward": sample.reward,
        "advantage": round(advantage, 6),
        "finish_reason": sample.finish_reason,
        "failed": sample.failed,
        "ids": sample.ids.tolist(),
        "sampled": sampled.astype(int).tolist(),
        "turns": sample.turns.tolist(),
        "logprobs": [round(float(value), 5) for value in sample.logprobs],
        "trainer_logprobs": [round(float(value), 5) for value in trainer],
        "staleness": staleness.tolist(),
    }
