"""Samples that share prefixes, laid out so that every prefix is there once.

The rollouts of one prompt, and trajectories that branch after a turn, begin alike. Laid out as trees they need the
tokens of a prefix, and its attention and feed-forward layers, once.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from glmcore import _core
from glmcore.packing import Packing, RaggedLike, check_array


@dataclass(frozen=True)
class PrefixForest:
    """Samples that share prefixes, as trees of T tokens in depth-first order: every prefix is there once.

    Token j sees token k where `k <= j < subtree_end[k]`. The log-probability of token j given what comes before it
    is that of id `input_ids[j]` at token `parent[j]`, one number for all samples that contain the token.
    """

    input_ids: npt.NDArray[np.int32]
    """Token ids, [T]."""
    position_ids: npt.NDArray[np.int32]
    """Place of each token in its samples, from 0, [T]."""
    parent: npt.NDArray[np.int32]
    """Place in the forest of the token before each, -1 for first tokens, [T]."""
    subtree_end: npt.NDArray[np.int32]
    """End of what may see each token, itself included, [T]."""
    place: npt.NDArray[np.int32]
    """Place in the forest of every token of every sample, sample after sample, [n]."""

    @property
    def num_saved_tokens(self) -> int:
        """Tokens that the samples have apart, less those of the forest."""
        return len(self.place) - len(self.input_ids)

    def sum_over_samples(self, values: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """For each token of the forest the sum over the samples that contain it, float64 [T].

        Of the samples' loss weights this gives the weights with which the forest's loss and gradients equal theirs;
        of ones it gives in how many samples each token is.

        Args:
            values: A number for every token of every sample, [n].
        """
        sums = np.bincount(self.place, weights=np.asarray(values, np.float64), minlength=len(self.input_ids))
        return sums.astype(np.float64)


def share_prefixes(samples: RaggedLike) -> PrefixForest:
    """Lay samples out as trees; two share a token where they are equal up to and including it.

    Trees and branches are in lexicographic order of their ids, whatever the order of the samples.

    Raises:
        PackingError: An array has the wrong type.
    """
    check_array("ids", samples.ids, np.int32)
    check_array("offsets", samples.offsets, np.int64)
    return PrefixForest(*_core.share_prefixes(samples.ids, samples.offsets))


def group_by_prefix(samples: RaggedLike, capacity: int) -> Packing:
    """A batch for every sample, so that no batch's forest has more than `capacity` tokens.

    Samples go in lexicographic order, so those with long common prefixes come together; a prefix is repeated only
    where its samples are in two batches.

    Raises:
        PackingError: A sample is longer than a batch, or an array has the wrong type.
    """
    check_array("ids", samples.ids, np.int32)
    check_array("offsets", samples.offsets, np.int64)
    return _core.group_by_prefix(samples.ids, samples.offsets, capacity)
