"""Shared weights: the weights of a layer take few values, found by k-means and trained on together.

References:
    Han, Mao and Dally, 2016, "Deep Compression: Compressing Deep Neural Networks with Pruning, Trained Quantization and
    Huffman Coding", section 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import Tensor, nn

from autocompress.compress.masks import masked_weight
from autocompress.errors import CompressionError, InfeasibleError
from autocompress.records import Codebook
from autocompress.rng import derive_seed

#: Values that k-means sees at most; of a larger layer, so many evenly spaced ones in order of size.
_SAMPLE = 200_000
_ITERATIONS = 100


@dataclass(frozen=True)
class Book:
    """The values of one layer, and which weight has which.

    Attributes:
        centroids: shape (k,), ascending when fitted, of the weight's kind of number.
        indices: shape of the weight, int64: position in `centroids`; -1 for a weight that is exactly zero and stays so.
    """

    centroids: Tensor
    indices: Tensor

    def weight(self) -> Tensor:
        """The weight that the book stands for; zeros are positive zeros."""
        values = torch.cat((self.centroids, self.centroids.new_zeros(1)))  # -1 is the last
        return values[self.indices]


@dataclass(frozen=True)
class Codebooks:
    """Weights that share values.

    Attributes:
        books: layer name -> its values and who has them.
    """

    books: Mapping[str, Book]

    @torch.no_grad()
    def apply(self, module: nn.Module) -> None:
        """Write the shared values into the layers of `module`, in place.

        Raises:
            CompressionError: a layer's weight has another shape than when its book was fitted.
            InfeasibleError: a layer is missing.
        """
        for name, book in self.books.items():
            weight = _weight(module, name)
            if weight.shape != book.indices.shape:
                raise CompressionError(
                    f"codebook of {name!r}: expected a weight of shape {tuple(book.indices.shape)}, "
                    f"got {tuple(weight.shape)}"
                )
            weight.copy_(book.weight())

    def hook(self) -> TiedWeights:
        """A training hook that begins with these values and keeps weights tied; see `TiedWeights`."""
        return TiedWeights(self)

    def __bool__(self) -> bool:
        """True if any layer shares weights."""
        return bool(self.books)


def fit_codebooks(module: nn.Module, codebooks: Sequence[Codebook], *, seed: int) -> Codebooks:
    r"""k-means on the non-zero weights of each layer: :math:`\min \sum_i (w_i - c_{a(i)})^2`.

    Centroids begin evenly spaced between the smallest and the largest weight ("linear" initialization), which gives the
    few large weights, those that matter most, centroids of their own. Weights that are exactly zero stay zero beside
    the `clusters` values. A layer with no more distinct weights than clusters keeps them as they are.

    Args:
        module: left alone.
        codebooks: which layers, and how many values each.
        seed: of what k-means draws when a cluster has become empty.

    Raises:
        InfeasibleError: a layer is missing, or has no weight but zeros.
        CompressionError: a weight is not finite.
    """
    books = {}
    for entry in codebooks:
        weight = _weight(module, entry.layer).detach()
        if not bool(torch.isfinite(weight).all()):
            raise CompressionError(f"codebook of {entry.layer!r}: expected finite weights, got NaN or infinity")
        values = weight[weight != 0].double().cpu().numpy()
        if len(values) == 0:
            raise InfeasibleError(f"plan.codebooks: layer {entry.layer!r}: expected some weights that are not zero")
        found = _centroids(values, entry.clusters, derive_seed(seed, "k-means", entry.layer))
        centroids = torch.from_numpy(found).to(weight)
        # Nearest centroid: the bounds are half-way between neighbours. In double precision, before rounding.
        bounds = torch.from_numpy((found[1:] + found[:-1]) / 2).to(weight.device)
        indices = torch.bucketize(weight.double().contiguous(), bounds)
        books[entry.layer] = Book(centroids, indices.masked_fill(weight == 0, -1))
    return Codebooks(books)


def centroid_gradients(gradient: Tensor, indices: Tensor, clusters: int) -> Tensor:
    r""":math:`\partial L / \partial c_k = \sum_{i: a(i) = k} \partial L / \partial w_i`, as in Han et al. (2016).

    Args:
        gradient: of the weights, any shape.
        indices: same shape, int64: which centroid each weight has; -1 for none.
        clusters: number of centroids.

    Returns:
        Shape (clusters,).
    """
    members = indices >= 0
    return gradient.new_zeros(clusters).index_add_(0, indices[members], gradient[members])


class TiedWeights:
    """Trains centroids in place of weights, as a hook.

    A centroid's gradient is the sum of its members' (`centroid_gradients`). Its step is that gradient divided by the
    number of members: the steepest descent among tied weights, so that the learning rate, the weight decay and the
    clipping that suit single weights suit thousands that move as one. Weights are exactly tied after every step.
    """

    def __init__(self, books: Codebooks) -> None:
        """Begin with the centroids of `books`, which is not changed."""
        self._centroids = {name: book.centroids.clone() for name, book in books.books.items()}
        self._indices = {name: book.indices for name, book in books.books.items()}
        self._counts = {
            name: torch.bincount(book.indices[book.indices >= 0], minlength=len(book.centroids)).clamp_(min=1)
            for name, book in books.books.items()
        }

    @property
    def books(self) -> Codebooks:
        """The values as they are now."""
        return Codebooks({name: Book(c.clone(), self._indices[name]) for name, c in self._centroids.items()})

    def before_forward(self, module: nn.Module, step: int, steps: int) -> None:
        """Write the shared values before the first step."""
        if step == 0:
            self.finish(module)

    @torch.no_grad()
    def before_update(self, module: nn.Module, step: int, steps: int) -> None:
        """Give every weight its centroid's gradient, per member; none to zeros."""
        for name, indices in self._indices.items():
            gradient = _weight(module, name).grad
            if gradient is not None:
                total = centroid_gradients(gradient, indices, len(self._centroids[name]))
                gradient.copy_(Book(total / self._counts[name], indices).weight())

    @torch.no_grad()
    def after_update(self, module: nn.Module, step: int, steps: int) -> None:
        """Read the centroids from their members and write them back, so that rounding cannot part them."""
        for name, indices in self._indices.items():
            weight = _weight(module, name)
            # Members have had the same value, gradient and history: their mean differs from each by rounding alone.
            total = centroid_gradients(weight.double(), indices, len(self._centroids[name]))
            used = torch.bincount(indices[indices >= 0], minlength=len(total)) > 0
            new = (total / self._counts[name]).to(weight.dtype)
            self._centroids[name] = torch.where(used, new, self._centroids[name])
        self.books.apply(module)

    def finish(self, module: nn.Module) -> None:
        """Write the shared values."""
        self.books.apply(module)


def _centroids(values: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    """Ascending distinct centroids, float64."""
    distinct = np.unique(values)
    if len(distinct) <= clusters:
        return distinct
    ordered = np.sort(values)
    sample = ordered[np.linspace(0, len(ordered) - 1, min(len(ordered), _SAMPLE)).round().astype(np.int64)]
    start = np.linspace(ordered[0], ordered[-1], clusters)
    means = KMeans(clusters, init=start.reshape(-1, 1), n_init=1, max_iter=_ITERATIONS, random_state=seed)
    return np.unique(means.fit(sample.reshape(-1, 1)).cluster_centers_)


def _weight(module: nn.Module, layer: str) -> Tensor:
    try:
        return masked_weight(module, layer)
    except InfeasibleError as error:
        raise InfeasibleError(f"plan.codebooks: expected a layer of the network, got {layer!r}") from error
