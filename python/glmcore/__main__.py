"""`python -m glmcore`, which is what torchrun starts: `torchrun --nproc-per-node 2 -m glmcore train ...`."""

from glmcore.cli import entry_point

entry_point()
