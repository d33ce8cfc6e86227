"""Seeds of rollouts and answers, from their place in a run."""

_GAMMA, _MASK = 0x9E3779B97F4A7C15, 2**64 - 1


def seed_of(*place: int) -> int:
    """A seed in [0, 2**64) from a run's seed and a place in the run; that of another place has nothing to do with it.

    Places that differ in one number never share a seed. Source: SplitMix64 (Steele et al., OOPSLA 2014), whose mixing
    takes in one number after the other.

    Args:
        place: Not negative, below 2**64.
    """
    state = len(place)
    for number in place:
        bits = ((state ^ number) + _GAMMA) & _MASK
        bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & _MASK
        state = bits ^ (bits >> 31)
    return state
