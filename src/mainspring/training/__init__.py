"""From a dataset version to a model worth deploying: splits, search, evaluation, comparison, the locked hold-out.

Except for :mod:`mainspring.training.operations` the functions are pure: arrays in, records out, every random choice seeded.
"""

from mainspring.training.operations import Training

__all__ = ["Training"]
