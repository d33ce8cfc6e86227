"""What a rollout needs of whoever samples: an engine in this process, or a server."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

from glmcore.engine.request import Generation
from glmcore.engine.sampling import SamplingParams

if TYPE_CHECKING:
    from glmcore.fp8.bucket import Bucket


class Samples(Protocol):
    """Who draws the tokens of an episode."""

    async def generate(
        self, prompt_ids: Sequence[int], params: SamplingParams, *, priority: int = 0
    ) -> list[Generation]:
        """Continue a prompt `params.n` times. Every token is marked with the version of the weights that drew it.

        Args:
            prompt_ids: Not empty.
            params: Of sampling.
            priority: Lower numbers go first, then who came first.

        Raises:
            RequestError: The request cannot be served.
        """
        ...


class PolicyEngine(Samples, Protocol):
    """Samples from a policy whose weights are replaced while it does. All methods may be called by many tasks."""

    @property
    def policy_version(self) -> int:
        """Version of the weights that draw the next token."""
        ...

    async def update_weights(self, version: int, buckets: "Iterable[Bucket]") -> str:
        """Replace the weights between two steps; what is being generated goes on under the new ones.

        Returns:
            `weights_checksum` of what the engine then holds.

        Raises:
            SyncError: The weights did not come whole.
        """
        ...

    async def pause(self) -> None:
        """Draw nothing after the step that is under way, until `resume`. Requests are kept, new ones taken."""
        ...

    async def resume(self) -> None:
        """Go on after `pause`."""
        ...

    async def abort_all(self) -> list[Generation]:
        """End all requests; gives what they have, which is also what their callers get, with the reason `abort`."""
        ...
