"""Near duplicates: none is left out without reason, almost none is missed, whatever the rows look like."""

from __future__ import annotations

import numpy as np
import pytest

from bindsearch.cache.duplicates import find_duplicates, plan_tables
from bindsearch.errors import InputError


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def clustered(seed, n=3000, dim=48, gap=1.0):
    """Rows around 40 centres with a common mean, a tenth of them near copies of earlier ones."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((40, dim))[rng.integers(0, 40, n)] + 0.5 * rng.standard_normal((n, dim)) + gap
    rows = unit(rows)
    later = rng.choice(np.arange(n // 2, n), n // 10, replace=False)
    earlier = rng.integers(0, n // 2, n // 10)
    rows[later] = unit(rows[earlier] + 0.02 / np.sqrt(dim) * rng.standard_normal((later.size, dim)))
    return rows


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("threshold", [0.999, 0.99])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_who_is_left_out_repeats_who_stays(seed, threshold, dtype):
    rows = clustered(seed).astype(dtype)
    witness = find_duplicates(rows, threshold)
    wide = rows.astype(np.float64)
    out = np.flatnonzero(witness >= 0)
    assert (witness[out] < out).all()
    assert (witness[witness[out]] == -1).all()
    assert ((wide[out] * wide[witness[out]]).sum(axis=1) >= threshold - 1e-6).all()
    products = np.tril(wide @ wide.T, -1)
    kept = np.flatnonzero(witness < 0)
    beyond = (products[np.ix_(kept, kept)] >= threshold + 1e-6).any(axis=1).sum()
    true = (products >= threshold).any(axis=1).sum()
    assert out.size > 250
    assert beyond <= max(1, 0.005 * true), f"{beyond} of {true} duplicates were missed"


def test_large_buckets_are_split_without_loss(monkeypatch):
    rows = clustered(3)
    monkeypatch.setattr("bindsearch.cache.duplicates.plan_tables", lambda threshold, norm: (1, 1))
    whole = find_duplicates(rows, 0.999)
    monkeypatch.setattr("bindsearch.cache.duplicates._MOST_TOGETHER", 100)
    np.testing.assert_array_equal(find_duplicates(rows, 0.999) >= 0, whole >= 0)


def test_only_equal_rows_without_a_threshold():
    rows = clustered(4, n=400)
    rows[[50, 399]] = rows[7]
    witness = find_duplicates(rows, None)
    assert witness[50] == witness[399] == 7
    assert (witness >= 0).sum() == 2


def test_nothing_is_left_out_where_nothing_repeats():
    rows = unit(np.random.default_rng(5).standard_normal((2000, 64)))
    assert (find_duplicates(rows, 0.98) == -1).all()
    assert find_duplicates(rows[:1], 0.999).tolist() == [-1]
    assert find_duplicates(rows[:0], 0.999).size == 0


def test_all_equal_rows_leave_one():
    rows = np.repeat(unit(np.ones((1, 8))), 5000, axis=0)
    rows[:, 0] += np.linspace(0, 1e-3, 5000, dtype=np.float32)
    witness = find_duplicates(unit(rows), 0.999)
    assert (witness < 0).sum() == 1


@pytest.mark.parametrize("threshold", [0.5, 1.5, float("nan")])
def test_thresholds_that_mean_nothing(threshold):
    with pytest.raises(InputError, match=r"near_duplicate: expected a cosine from 0\.98 to 1"):
        find_duplicates(np.eye(3, dtype=np.float32), threshold)


def test_tables_follow_threshold_and_spread():
    assert plan_tables(0.999, 0.5) > plan_tables(0.99, 0.5) > plan_tables(0.98, 0.5)
    assert plan_tables(0.99, 0.9) > plan_tables(0.99, 0.3)
    assert plan_tables(0.99, 1e-3) == (0, 1)
