"""Datasets: versions of tables and files, checks before training, profiles."""
