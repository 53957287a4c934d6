"""Retrieval: sequences of the same class first, by cosine similarity; nothing is trained."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Similarities held at a time.
_CHUNK_ENTRIES = 1 << 24
RECALLS = (1, 5, 10, 20)


def retrieve(
    gallery: Tensor,
    gallery_labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    *,
    leave_one_out: bool = False,
    recalls: tuple[int, ...] = RECALLS,
    chunk_entries: int = _CHUNK_ENTRIES,
) -> dict[str, float | int]:
    """Mean average precision and recall at k, in per cent.

    Average precision of a query: the mean, over the gallery's rows of its class, of the share of its class among what
    is at least as similar (rows of equal similarity count as one place, as in scikit-learn). Recall at k: whether one
    of the k most similar rows (equal similarity: the lower row) is of its class. Queries of a class that the gallery
    does not have are left out of both and counted.

    Args:
        gallery: float [n, F].
        gallery_labels: int64 [n].
        queries: float [m, F].
        query_labels: int64 [m].
        leave_one_out: the gallery is the queries, and none of them finds itself.
        recalls: k.
        chunk_entries: similarities held at a time.

    Returns:
        ``map``, ``recall@k`` of each k, ``queries`` that were measured and ``left_out``.
    """
    gallery, queries = F.normalize(gallery, dim=1), F.normalize(queries, dim=1)
    rows = max(1, chunk_entries // max(1, len(gallery)))
    precisions, hits = [], []
    for start in range(0, len(queries), rows):
        similarity = queries[start : start + rows] @ gallery.T  # [c, n]
        right = query_labels[start : start + rows, None] == gallery_labels  # [c, n]
        if leave_one_out:
            own = torch.arange(len(similarity), device=similarity.device)
            similarity[own, own + start] = -torch.inf  # behind everything, and of no class
            right[own, own + start] = False
        ordered, order = torch.sort(similarity, dim=1, descending=True, stable=True)
        right = right.gather(1, order)
        precisions.append(_average_precision(ordered, right))
        hits.append(torch.stack([right[:, :k].any(dim=1) for k in recalls], dim=1))
    precision, hit = torch.cat(precisions), torch.cat(hits)
    has_match = precision.isfinite()
    measured = int(has_match.sum())
    result: dict[str, float | int] = {"map": 100.0 * float(precision[has_match].mean()) if measured else 0.0}
    for column, k in enumerate(recalls):
        result[f"recall@{k}"] = 100.0 * float(hit[has_match, column].double().mean()) if measured else 0.0
    return result | {"queries": measured, "left_out": len(queries) - measured}


def _average_precision(ordered: Tensor, right: Tensor) -> Tensor:
    """float64 [c] from descending similarities [c, n] and which are of the class; NaN where none is."""
    n = ordered.shape[1]
    hits = right.cumsum(dim=1).double()  # [c, n]
    # The last row of those that are equally similar: its place counts for all of them.
    last = torch.arange(n, device=ordered.device).expand_as(ordered)
    differs = torch.ones_like(right)
    differs[:, :-1] = ordered[:, :-1] != ordered[:, 1:]
    last = torch.where(differs, last, n).flip(1).cummin(dim=1).values.flip(1)
    precision = hits.gather(1, last) / (last + 1)
    return (precision * right).sum(dim=1) / hits[:, -1]
