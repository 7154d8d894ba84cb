from __future__ import annotations

import math

from mainspring.serving.routing import choose_target, position, share_bounds


def test_v14_the_split_is_within_binomial_bounds_and_stable() -> None:
    """Seen red with the position taken from one digest byte modulo 100."""
    for share in (0.01, 0.1, 0.5):
        bounds = share_bounds([share, 1 - share])
        n = 20_000
        picks = [choose_target(bounds, f"key-{i}") for i in range(n)]
        canary = picks.count(0)
        assert abs(canary - n * share) < 5 * math.sqrt(n * share * (1 - share))
        assert picks == [choose_target(bounds, f"key-{i}") for i in range(n)]


def test_a_growing_canary_keeps_its_keys() -> None:
    keys = [f"user-{i}" for i in range(5000)]
    small = {k for k in keys if choose_target(share_bounds([0.05, 0.95]), k) == 0}
    large = {k for k in keys if choose_target(share_bounds([0.2, 0.8]), k) == 0}
    assert small
    assert small < large


def test_positions_are_spread_over_the_unit_interval() -> None:
    places = [position(str(i)) for i in range(10_000)]
    assert 0 <= min(places) < 0.001
    assert 0.999 < max(places) < 1


def test_the_last_edge_is_exactly_one() -> None:
    assert share_bounds([0.1] * 10)[-1] == 1.0
