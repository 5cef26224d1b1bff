"""The compiled algebra of slits beside plain numpy."""

import numpy as np

from mbkg_xr.hierarchy import likely_variance
from mbkg_xr.populations import sum_by
from mbkg_xr.slit_algebra import (
    add_on_places,
    add_up_bins,
    integrate_own,
    inverses,
    least_scores,
    middles_of,
    own_parts,
    shutter_parts,
    shutter_rests,
    slit_parts,
    solve_each,
    spread_of_places,
)

SLITS, SHUTTERS, BINS, K = 7, 5, 11, 3


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


def information(rng, n, k=K):
    a = rng.normal(size=(n, k, 2 * k))
    return a @ np.swapaxes(a, -1, -2)


def test_inverses_of_any_scale():
    rng = np.random.default_rng(0)
    matrices = information(rng, 20).reshape(4, 5, K, K) + np.diag([1.0, 1e6, 1e12])
    close(inverses(matrices) @ matrices, np.broadcast_to(np.eye(K), matrices.shape))


def test_shutters():
    """A leak and a level integrated out of each shutter: the marginal of the joint system."""
    rng = np.random.default_rng(1)
    weight = rng.uniform(0, 100, (SLITS, SHUTTERS, BINS)) * (rng.random((SLITS, 1, BINS)) > 0.2)
    excess = weight * rng.normal(size=weight.shape)
    basis, light = rng.normal(size=(BINS, K)), rng.uniform(0, 1, (SLITS, BINS))
    basis[:, 0] = 1.0
    keep = rng.random((SLITS, SHUTTERS)) > 0.2
    mean, precision = rng.normal(size=keep.shape), rng.uniform(1, 2, keep.shape)
    scale, level = rng.normal(size=(SLITS, K)), 0.3
    gram = np.zeros((SLITS, SHUTTERS, K + 1, K + 1))
    linear = np.zeros((SLITS, SHUTTERS, K + 1))
    add_up_bins(weight, excess, basis, light, gram, linear)
    data, right = np.zeros((SLITS, SHUTTERS, K, K)), np.zeros((SLITS, SHUTTERS, K))
    shutter_parts(gram, linear, keep, mean, precision, level, data, right)
    together = np.zeros((SLITS, K, K)), np.zeros((SLITS, K))
    slit_parts(gram, linear, keep, mean, precision, level, *together)
    close(together[0], data.sum(axis=1))
    close(together[1], right.sum(axis=1))
    rests = np.zeros((SLITS, SHUTTERS, 4))
    shutter_rests(gram, linear, keep, scale, mean, precision, rests)
    for s, z in np.ndindex(SLITS, SHUTTERS):
        if not keep[s, z]:
            assert not data[s, z].any() and not rests[s, z].any()
            continue
        design = np.column_stack([basis, light[s], np.ones(BINS)])
        joint = design.T @ (weight[s, z, :, None] * design)
        joint[K, K] += precision[s, z]
        joint[K + 1, K + 1] += 1 / level
        told = design.T @ excess[s, z]
        told[K] += precision[s, z] * mean[s, z]
        pull = joint[:K, K:] @ np.linalg.inv(joint[K:, K:])
        close(data[s, z], joint[:K, :K] - pull @ joint[K:, :K])
        close(right[s, z], told[:K] - pull @ told[K:])
        left = excess[s, z] - weight[s, z] * (basis @ scale[s])
        stray = (left * light[s]).sum() + precision[s, z] * mean[s, z]
        share = joint[K + 1, K] / joint[K, K]
        close(rests[s, z, 0], weight[s, z].sum() - share * joint[K + 1, K])
        close(rests[s, z, 1], left.sum() - share * stray)
        close(rests[s, z, 2:], [(weight[s, z] * light[s] ** 2).sum(), (left * light[s]).sum()])


def test_slits_and_places():
    rng = np.random.default_rng(2)
    data, right = information(rng, SLITS), rng.normal(size=(SLITS, K))
    tau = np.array([0.5, 1.0, 2.0])
    kept, seen, said = np.empty_like(right), np.empty_like(data), np.empty_like(right)
    integrate_own(data, right, tau, kept, seen, said)
    own = np.linalg.inv(data + np.diag(1 / tau))
    close(kept, np.einsum("skk->sk", own))
    close(seen, data - data @ own @ data)
    close(said, right - np.einsum("sij,sjk,sk->si", data, own, right))

    slitlet, exposure = np.array([0, 1, 2, 0, 1, 2, 0]), np.array([0, 0, 0, 1, 1, 1, 2])
    common, drift = rng.normal(size=(3, K)), rng.normal(size=(3, K))
    spread, wide = information(rng, 3), information(rng, 3)
    alone, variance = np.empty_like(right), np.empty_like(right)
    own_parts(
        seen, said, tau, kept, slitlet, exposure, common, drift, spread, wide, alone, variance
    )  # fmt: skip
    mean = common[slitlet] + drift[exposure]
    scale = np.empty_like(right)
    solve_each(data, right, mean, tau, scale)
    close(scale, np.einsum("sij,sj->si", own, right + mean / tau))
    left = right - np.einsum("sij,sj->si", data, mean)
    close(alone, np.einsum("sij,sj->si", own, left))
    kept = data @ own
    whole = own + np.swapaxes(kept, 1, 2) @ (spread[slitlet] + wide[exposure]) @ kept
    close(variance, np.einsum("skk->sk", whole))

    place = rng.normal(size=(SLITS, 4)) * (rng.random((SLITS, 4)) > 0.4)
    gram = np.zeros((4 * K, 4 * K))
    add_on_places(place, data, gram)
    close(gram, np.einsum("cp,cq,ckl->pkql", place, place, data).reshape(4 * K, 4 * K))
    found = np.zeros_like(data)
    spread_of_places(place, gram, found)
    blocks = gram.reshape(4, K, 4, K)
    close(found, np.einsum("cp,pkql,cq->ckl", place, blocks, place))


def test_sums_and_variances_of_populations():
    rng = np.random.default_rng(3)
    index, values = rng.integers(0, 4, 50), rng.normal(size=(50, 2, 3))
    close(sum_by(index, values, 5), [values[index == i].sum(axis=0) for i in range(5)])

    squares, effective = rng.normal(size=(50, K)) ** 2, rng.uniform(0, 1, (50, K))
    effective[:7], squares[9] = 0.0, 1e4  # slits without data, and a wild one
    present, prior = np.array([1.0, 0.5, 2.0]), np.array([0.8, 0.5, 40.0])
    usual = np.median(squares[7:], axis=0) / 0.455
    bounded = np.minimum(squares, 9 * np.maximum(usual, 0.04 * np.minimum(present, prior)))
    away = 2 * np.log(prior / present) / np.log(100.0) ** 2
    up = bounded.sum(axis=0) / present + np.maximum(away, 0) + 1e-3
    down = effective.sum(axis=0) + np.maximum(-away, 0) + 1e-3
    close(likely_variance(squares, effective, present, prior), present * up / down)
    few = likely_variance(squares[8:11], effective[8:11], present, prior)
    assert few[0] > 25 * present[0]  # three slits bound none of them


def test_slits_against_others():
    """Shortest halves by exposure, and the choice of shutters that departs least."""
    rng = np.random.default_rng(4)
    ordered, group = np.sort(rng.normal(size=60)), rng.integers(0, 5, 60)
    group[group == 3] = 2
    group[[5, 40]] = 3
    out = np.full(5, 9.0)
    middles_of(ordered, group, 4, out)
    assert out[0] == 9 and out[3] == 9  # no exposure, and one of two slits
    for g in (1, 2, 4):
        some = ordered[group == g]
        half = (some.size + 1) // 2
        first = np.argmin([some[i + half - 1] - some[i] for i in range(some.size - half + 1)])
        close(out[g], np.median(some[first : first + half]))

    value, variance = rng.normal(size=(9, 4)), rng.uniform(0, 2, (9, 4))
    variance[:, 2] = np.inf
    middle = rng.normal(size=9)
    away, score = np.empty((2, 9))
    least_scores(value, variance, middle, 0.3, away, score)
    off = value - middle[:, None]
    all_scores = np.abs(off) / np.sqrt(0.3 + variance)
    close(score, all_scores.min(axis=1))
    close(away, off[np.arange(9), all_scores.argmin(axis=1)])
