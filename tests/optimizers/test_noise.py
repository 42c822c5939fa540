"""The noise has the distribution that it is said to have."""

import numpy as np
import pytest
import torch
from scipy import stats

from upgd_ppo.agents.optimizers import PGD, UPGD


def drawn(columns=2**18, rows=1, seed=0, **settings):
    """The noise of one step, [rows, columns]: PGD's whole step at a zero gradient."""
    p = torch.zeros(rows, columns, requires_grad=True)
    p.grad = torch.zeros_like(p)
    source = [torch.Generator().manual_seed(seed + k) for k in range(rows)]
    PGD([p], lr=1.0, sigma=1.0, members=True, generator=source, **settings).step()
    return -p.detach().numpy()


def test_normal_noise_is_normal():
    noise = drawn()[0].astype(np.float64)
    # A true sample fails each of these with probability 1e-4 or less; the seed is fixed.
    assert stats.kstest(noise, "norm").pvalue > 1e-4
    assert stats.jarque_bera(noise).pvalue > 1e-4
    n = len(noise)
    assert abs(noise.mean()) < 4 / np.sqrt(n)
    assert abs(noise.var() - 1) < 4 * np.sqrt(2 / n)


def test_draws_are_uncorrelated_along_the_row_and_between_members():
    noise = drawn(rows=2).astype(np.float64)
    n = noise.shape[1]
    for lag in (1, 2, 3, 4, 8, 64, 1024):
        assert abs((noise[0, lag:] * noise[0, :-lag]).mean()) < 4.5 / np.sqrt(n)
        assert abs((noise[0, lag:] ** 2 * noise[0, :-lag] ** 2).mean() - 1) < 15 / np.sqrt(n)
    assert abs((noise[0] * noise[1]).mean()) < 4.5 / np.sqrt(n)


def test_cauchy_noise_is_cauchy_and_the_cap_holds():
    noise = drawn(columns=2**16, noise="cauchy")[0].astype(np.float64)
    assert stats.kstest(noise, "cauchy").pvalue > 1e-4
    assert np.abs(noise).max() > 1e3
    capped = drawn(columns=2**16, noise="cauchy", noise_clip=5.0)[0]
    np.testing.assert_allclose(capped, noise.clip(-5, 5), rtol=1e-6)


@pytest.mark.parametrize("columns", [1, 3, 17, 64, 1001])
@pytest.mark.parametrize("kind", ["normal", "cauchy"])
def test_every_size_is_filled(columns, kind):
    assert np.count_nonzero(drawn(columns=columns, noise=kind)) == columns


def test_noise_of_one_step_is_not_that_of_the_next():
    p = torch.zeros(4096, requires_grad=True)
    p.grad = torch.zeros_like(p)
    optimizer = UPGD([p], lr=1.0, sigma=1.0, weight_decay=0.0)
    optimizer.step()
    first = p.detach().clone()
    optimizer.step()
    second = p.detach() - first
    assert abs((first * second).mean() / (first.std() * second.std())) < 4.5 / 64


def test_without_sigma_nothing_is_drawn():
    def refuse(p):
        raise AssertionError("drew noise")

    p = torch.ones(3, requires_grad=True)
    p.grad = torch.ones(3)
    UPGD([p], sigma=0.0, noise=refuse).step()
    assert (p < 1).all()
