import numpy as np
import torch

from s2vfast.data.augment import AUGMENTATIONS
from s2vfast.reference import philox


def words(*values):
    return tuple(torch.tensor([v]) for v in values)


def test_known_answers():
    """The first two vectors of the authors' kat_vectors, philox4x32 10."""
    zero = philox.philox4x32(words(0, 0, 0, 0), 0)
    assert [int(w) for w in zero] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    ones = philox.philox4x32(words(*[0xFFFFFFFF] * 4), 0xFFFFFFFFFFFFFFFF)
    assert [int(w) for w in ones] == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


def test_pi_vector():
    """The third: digits of pi as counter and key."""
    counter = words(0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    found = philox.philox4x32(counter, 0x299F31D0 << 32 | 0xA4093822)
    assert [int(w) for w in found] == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


def test_numpy_draws_the_same():
    """numpy's Philox is the 64-bit one; the 32-bit one is written here once more, with Python's integers."""

    def philox32(counter, key):
        c, k = list(counter), list(key)
        for _ in range(10):
            p0, p1 = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
            c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & 0xFFFFFFFF, (p0 >> 32) ^ c[3] ^ k[1], p0 & 0xFFFFFFFF]
            k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
        return c

    seed, epoch = 0x123456789ABCDEF, 41
    ids = torch.tensor([7, 3 | 1 << 32 | 5 << 40])
    found = philox.random_bits(seed, epoch, ids, philox.MASK, 10)
    key = (seed & 0xFFFFFFFF, seed >> 32)
    for n, (low, high) in enumerate([(7, 0), (3, 1 | 5 << 8)]):
        blocks = (philox32((block, low, epoch, high << 8 | philox.MASK), key) for block in range(3))
        expected = [word for block in blocks for word in block]
        assert found[n].tolist() == expected[:10]


def test_draws_do_not_depend_on_company_or_count():
    many = philox.random_bits(1, 2, torch.arange(50), philox.CLIP, 9)
    assert torch.equal(philox.random_bits(1, 2, torch.tensor([31]), philox.CLIP, 5), many[31:32, :5])


def test_every_part_of_the_counter_matters():
    base = philox.random_bits(1, 2, torch.tensor([3]), philox.CLIP, 8)
    for other in (
        philox.random_bits(2, 2, torch.tensor([3]), philox.CLIP, 8),
        philox.random_bits(1 | 1 << 40, 2, torch.tensor([3]), philox.CLIP, 8),
        philox.random_bits(1, 3, torch.tensor([3]), philox.CLIP, 8),
        philox.random_bits(1, 2, torch.tensor([4]), philox.CLIP, 8),
        philox.random_bits(1, 2, torch.tensor([3 | 1 << 32]), philox.CLIP, 8),
        philox.random_bits(1, 2, torch.tensor([3]), philox.MASK, 8),
    ):
        assert not torch.equal(base, other)


def test_uniform_and_below():
    draws = philox.random_bits(5, 0, torch.arange(4000), philox.MASK, 50).flatten()
    u = philox.uniform(draws)
    assert u.dtype == torch.float32
    assert u.min() >= 0
    assert u.max() < 1
    counts = np.bincount((u.numpy() * 100).astype(int), minlength=100)
    chi2 = ((counts - 2000) ** 2 / 2000).sum()
    assert chi2 < 162  # 99 degrees of freedom, p = 6e-5
    counts = torch.bincount(philox.randint(draws, 7), minlength=7)
    assert ((counts - 200000 / 7) ** 2 / (200000 / 7)).sum() < 28  # 6 degrees of freedom, p = 1e-4


def test_track_ids():
    ids = philox.track_ids(torch.tensor([5, 9]), bodies=2, mask=3)
    assert ids.tolist() == [5 | 3 << 40, 5 | 1 << 32 | 3 << 40, 9 | 3 << 40, 9 | 1 << 32 | 3 << 40]


def test_no_two_purposes_share_their_draws():
    purposes = [value for name, value in vars(philox).items() if name.isupper() and not name.startswith("_")]
    numbers = purposes + [step.stream for step in AUGMENTATIONS.values()]
    assert len(purposes) >= 18
    assert len(set(numbers)) == len(numbers)
    assert max(numbers) < 256
