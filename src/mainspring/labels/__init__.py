"""Labels: feedback by prediction id, whenever and however often it comes."""

from mainspring.labels.operations import Labels

__all__ = ["Labels"]
