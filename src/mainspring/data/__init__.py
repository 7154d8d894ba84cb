"""Datasets: versions of tables and files, checks before training, profiles."""

from mainspring.data.client import DataClient
from mainspring.data.operations import Data

__all__ = ["Data", "DataClient"]
