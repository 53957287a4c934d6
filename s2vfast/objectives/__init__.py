"""What is predicted, and the loss: one objective a file."""

from s2vfast.objectives.skeleton2vec import Skeleton2vec, build_skeleton2vec

__all__ = ["Skeleton2vec", "build_skeleton2vec"]
