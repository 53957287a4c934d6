import numpy as np
import pytest
import torch

from s2vfast.objectives import vicreg

rng = np.random.default_rng(0)


def test_terms_as_published():
    """Sums over pairs of numbers, written out."""
    z = rng.normal(0, 0.7, (6, 4))
    centred = z - z.mean(0)
    deviation = [np.sqrt((centred[:, k] ** 2).sum() / 5 + 1e-4) for k in range(4)]
    lack = np.mean([max(0.0, 1 - d) for d in deviation])
    total = sum(((centred[:, i] * centred[:, j]).sum() / 5) ** 2 for i in range(4) for j in range(4) if i != j) / 4
    embeddings = torch.from_numpy(z)
    assert float(vicreg.lack_of_variance(embeddings)) == pytest.approx(lack, rel=1e-12)
    assert float(vicreg.covariance(embeddings)) == pytest.approx(total, rel=1e-12)


def test_what_the_terms_say():
    same = torch.ones(8, 3, dtype=torch.float64)
    assert float(vicreg.lack_of_variance(same)) == pytest.approx(0.99, abs=1e-3), "one embedding for all"
    apart = torch.from_numpy(rng.normal(0, 3, (500, 3)))
    assert float(vicreg.lack_of_variance(apart)) == 0
    copied = apart[:, :1].expand(-1, 3)
    assert float(vicreg.covariance(copied)) > 50 * float(vicreg.covariance(apart)), "three times the same"
