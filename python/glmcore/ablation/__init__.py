"""Ablations: the same training with one thing changed, over several seeds, with intervals."""
