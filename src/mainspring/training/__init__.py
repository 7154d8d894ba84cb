"""From a dataset version to a model worth deploying: splits, search, evaluation, comparison, the locked hold-out.

Apart from :mod:`mainspring.training.operations` this room is pure: arrays in, records out, every random choice seeded.
"""

from mainspring.training.operations import Training

__all__ = ["Training"]
