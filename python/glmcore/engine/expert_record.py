"""Which experts the tokens of the cache chose: what a trainer needs to route them alike.

A token's choices lie beside its keys and values, in the same block, so a prompt that finds its beginning in the cache
finds the choices there too, and whoever computes a token again writes them again. What belongs to a sequence is taken
out when its blocks leave it. **The first computation counts**: choices that a sequence has taken out stay as they were
when it is preempted or gets new weights and its text is read again, so those at the place before a token are the ones
that the token was drawn with.

Source: rollout routing replay (arXiv:2510.11370), section 3, and its caching of choices with the prefix.

Shapes: T tokens, P blocks, L decoder layers with experts, K experts per token.
"""

from collections.abc import Sequence

import numpy as np

from glmcore.engine.sequence import Sequence as Text
from glmcore.errors import ConfigError
from glmcore.model.glm import Glm
from glmcore.model.paged import BLOCK, PagedLayout


class ExpertRecord:
    """The choices of all tokens in the cache. The MTP layer's are not among them: trainers do not replay it.

    Args:
        model: Whose routers choose.
        num_blocks: Blocks of the cache, P.

    Raises:
        ConfigError: The model has no layer with experts, or too many experts.
    """

    def __init__(self, model: Glm, num_blocks: int) -> None:
        config = model.config
        self.num_layers = sum(number < config.num_hidden_layers for number in model.moe_layer_numbers)
        self.top_k = config.num_experts_per_tok
        if self.num_layers == 0:
            raise ConfigError("record_experts needs a model with routed experts: this one has none")
        self._chosen = np.empty((num_blocks, BLOCK, self.num_layers, self.top_k), expert_type(config.n_routed_experts))
        """[P, BLOCK, L, K]. Memory comes into use as it is written."""

    def room(self, num_tokens: int) -> np.ndarray:
        """Where a step may put the choices of its tokens, uint16 [T, L, K]."""
        return np.empty((num_tokens, self.num_layers, self.top_k), np.uint16)

    def write(self, layout: PagedLayout, chosen: np.ndarray) -> None:
        """Take down what the new tokens of a step chose, int [T, L, K]."""
        block, place = layout.places
        self._chosen[block.cpu().numpy(), place.cpu().numpy()] = chosen

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Make the second block of each pair a copy of the first."""
        source, target = np.array(pairs).T
        self._chosen[target] = self._chosen[source]

    def take_out(self, text: Text, blocks: Sequence[int], length: int) -> None:
        """Give a sequence what it does not have yet of its first `length` tokens, which lie in `blocks`."""
        known = sum(len(part) for part in text.experts)
        if length > known:
            positions = np.arange(known, length)
            text.experts.append(self._chosen[np.asarray(blocks)[positions // BLOCK], positions % BLOCK])


def expert_type(num_experts: int) -> type[np.uint8] | type[np.uint16]:
    """The smallest type that numbers so many experts.

    Raises:
        ConfigError: There are more than 65536.
    """
    if num_experts > 1 << 16:
        raise ConfigError(f"choices among {num_experts} experts cannot be recorded: at most {1 << 16} can")
    return np.uint8 if num_experts <= 1 << 8 else np.uint16
