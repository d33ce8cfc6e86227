"""`python -m glmcore.cli`."""

from glmcore.cli import entry_point

entry_point()
