"""The compiled algebra of slits beside plain numpy."""

import numpy as np

from mbkg_xr.slit_algebra import (
    add_on_places,
    add_up_bins,
    integrate_own,
    inverses,
    own_parts,
    shutter_parts,
    shutter_rests,
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
    own, seen, said = np.empty_like(data), np.empty_like(data), np.empty_like(right)
    integrate_own(data, right, tau, own, seen, said)
    close(own, np.linalg.inv(data + np.diag(1 / tau)))
    close(seen, data - data @ own @ data)
    close(said, right - np.einsum("sij,sjk,sk->si", data, own, right))

    slitlet, exposure = np.array([0, 1, 2, 0, 1, 2, 0]), np.array([0, 0, 0, 1, 1, 1, 2])
    common, drift = rng.normal(size=(3, K)), rng.normal(size=(3, K))
    spread, wide = information(rng, 3), information(rng, 3)
    alone, variance = np.empty_like(right), np.empty_like(right)
    own_parts(
        data, right, own, slitlet, exposure, common, drift, spread, wide, alone, variance
    )  # fmt: skip
    mean = common[slitlet] + drift[exposure]
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
