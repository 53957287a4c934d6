"""What ranks agree on, without processes."""

import copy

import pytest

from s2vfast import errors
from s2vfast.train.distributed import Ranks


class Beside(Ranks):
    """A rank beside others, whose values are given."""

    def __init__(self, rank, others):
        super().__init__(rank, len(others) + 1)
        self.others = others

    def _gather(self, value):
        found = list(self.others)
        found.insert(self.rank, value)
        return [copy.copy(item) for item in found]


@pytest.mark.parametrize("rank", [0, 1])
def test_what_goes_wrong_on_one_rank_is_said_by_rank_0(rank):
    """Also what went wrong on another one, which prints nothing."""
    failure = errors.ConfigError("train.device: this machine has no such GPU")

    def make():
        if rank == 1:
            raise failure
        return "fine"

    with pytest.raises(errors.ConfigError, match="no such GPU") as raised:
        Beside(rank, [("fine", None) if rank == 1 else (None, failure)]).run_on_all(make)
    assert raised.value.reported_by_other_rank == (rank != 0)


def test_a_value_that_differs_names_the_rank():
    with pytest.raises(errors.TrainingError, match="rank 1 has another store than rank 0: 'b', not 'a'") as raised:
        Beside(0, [("b", None)]).assert_equal_across_ranks("store", "a")
    assert not raised.value.reported_by_other_rank
