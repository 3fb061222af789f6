"""The rotation before product codes: exact products, columns dealt so that least is lost."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from bindsearch.index.faiss_index import load_faiss
from bindsearch.index.rotation import LOST, Rotation, find_directions, group_widths

DIM = 40


@pytest.fixture(scope="module")
def residuals():
    """Rows that differ along few directions, none of them an axis."""
    rng = np.random.default_rng(7)
    turned = np.linalg.qr(rng.standard_normal((DIM, DIM)))[0]
    return (rng.standard_normal((3000, DIM)) * 0.8 ** np.arange(DIM) @ turned).astype(np.float32)


def test_directions_are_those_asked_for_then_those_that_matter(residuals):
    asking = np.random.default_rng(8).standard_normal((3, DIM)).astype(np.float32)
    directions, weights, alone = find_directions(residuals, residuals, asking, 2)
    assert alone == 2
    assert np.allclose(directions @ directions.T, np.eye(DIM), atol=1e-6)
    within = np.linalg.norm(asking[:2] @ directions[:2].T, axis=1)
    assert np.allclose(within, np.linalg.norm(asking[:2], axis=1), rtol=1e-5)
    assert (np.diff(weights[2:]) <= 0).all() and (weights[:2] == weights[2]).all()
    seen = residuals @ directions[2:].T
    assert np.allclose(np.square(seen.var(axis=0)), weights[2:], rtol=0.1, atol=1e-4 * weights[2])


def test_rotated_vectors_keep_their_products_and_do_not_depend_on_the_batch(residuals):
    directions = find_directions(residuals, residuals, None, 0)[0]
    rotation = Rotation.of(directions)
    turned = rotation(residuals)
    assert turned.dtype == np.float32
    lengths = np.linalg.norm(residuals, axis=1)
    assert (np.linalg.norm(turned - residuals @ directions.T, axis=1) < 0.02 * lengths).all()
    for row in (0, 17, 2999):
        assert np.array_equal(rotation(residuals[row : row + 1])[0], turned[row])
    assert not Rotation() and Rotation()(residuals) is residuals


@pytest.mark.parametrize(("count", "groups", "alone"), [(7, 3, 0), (9, 3, 1), (12, 2, 1), (5, 5, 2), (30, 2, 0)])
def test_widths_lose_least_of_all_ways_to_share(count, groups, alone):
    weights = np.sort(np.random.default_rng(count).random(count) ** 4)[::-1]
    weights[:alone] = weights.max()

    def lost(widths):
        ends = np.cumsum(widths)
        parts = zip(ends, widths, strict=True)
        return sum(LOST[w - 1] * weights[e - w : e].sum() for e, w in parts) + weights[ends[-1] :].sum()

    ways = product(*([range(1, 2)] * alone + [range(1, len(LOST) + 1)] * (groups - alone)))
    best = min(lost(widths) for widths in ways if sum(widths) <= count)
    widths = group_widths(weights, groups, alone)
    assert widths.shape == (groups,) and (widths[:alone] == 1).all() and widths.sum() <= count
    assert lost(widths) == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("width", [2, 4, 8])
def test_the_table_of_losses_is_what_sixteen_words_lose(width):
    faiss = load_faiss()
    rng = np.random.default_rng(width)
    learnt, others = rng.standard_normal((2, 20000, width)).astype(np.float32)
    words = faiss.Kmeans(width, 16, niter=40, nredo=5, seed=1, max_points_per_centroid=10**6)
    words.train(learnt)
    assert words.index.search(others, 1)[0].mean() / width == pytest.approx(LOST[width - 1], rel=0.05)
