"""Other people's parameters: the published naming of Skeleton2vec and of MAMP, both ways; files of golden numbers."""

from s2vfast.compat.golden import check_golden
from s2vfast.compat.mamp import from_mamp, to_mamp
from s2vfast.compat.skeleton2vec import from_published, to_published

__all__ = ["check_golden", "from_mamp", "from_published", "to_mamp", "to_published"]
