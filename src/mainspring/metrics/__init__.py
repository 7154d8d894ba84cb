"""Metrics: one definition each, their intervals and comparisons, for evaluation, gates, windows and pages.

Pure NumPy: arrays in, numbers and records out. ``registry`` holds the metrics, ``intervals`` an estimate with its confidence
interval, ``compare`` two models on the same rows.
"""
