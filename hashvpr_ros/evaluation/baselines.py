"""Classical place recognition beside the network, so that a run shows what the network buys.

A bag of binary words as SLAM systems close loops with, pooled gradients as the plainest whole
image descriptor, and VLAD of dense SIFT as the strongest of the classical ones. None needs a model
file or training of ours; OpenCV, numpy and scikit-learn do.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.datasets.folder import read_image
from hashvpr_ros.engine.preprocess import check_rgb, resize
from hashvpr_ros.errors import ConfigError, DatasetError

Ranking = tuple[NDArray[np.int64], NDArray[np.float32]]

_WARM_UP = 3

# ORB sees nothing within half a patch of the border and little in a thumbnail; above VGA it costs
# time and finds the same corners.
_LEAST_PIXELS, _MOST_PIXELS = 320 * 240, 640 * 480
_KEYPOINTS = 1000
_FAST_THRESHOLD = 7  # with 20, the default, a dim image keeps too few corners
_EDGE_PX = 19  # ORB-SLAM's; 31, the default, gives away two fifths of a small image
_BRANCHES = 64  # of each of two levels: up to 4,096 words
_DESCRIPTORS_PER_WORD = 8  # at least, when words are learned
_LEARNED_FROM_IMAGES, _LEARNED_FROM_DESCRIPTORS = 300, 60_000
_ITERATIONS = 5
_SEED = 0

_HOG_PX, _CELL_PX, _ORIENTATIONS = 128, 8, 9
_BLUR_PX = 1.0

# Larger images cost time and find fewer places: a patch should span a good part of the image.
_VLAD_PIXELS = 160 * 120
_STEP_PX = 6
_PATCHES_PX = (4, 6, 8)  # OpenCV's sizes of keypoints; a patch is about ten times as wide
_SIFT_DIM = 128
_CENTERS, _CENTERS_FROM_DESCRIPTORS = 64, 40_000


class Baseline(Protocol):
    """What ranks references by an image of the query, and was told the references before."""

    name: str  # for tables

    @property
    def bytes_per_place(self) -> float:
        """Bytes that searching keeps in memory for one reference."""

    def fit(self, references: Sequence[Path], progress: Callable[[], None] = lambda: None) -> None:
        """Take these image files as the references, in place of any before.

        Images are read one at a time, so that memory holds descriptors alone.

        Args:
            progress: called after each reference.

        Raises:
            DatasetError: no references, or one that cannot be read.
        """

    def rank(self, image: NDArray[np.uint8]) -> Ranking:
        """The references that have anything in common with a query.

        Args:
            image: RGB, uint8 [H, W, 3].

        Returns:
            indices int64 and scores float32, best first, the scores above 0 and at most 1. Both
            are empty where the query shows nothing to go by: an order would be an accident.

        Raises:
            ImageError: another type or shape.
        """


class BagOfBinaryWords:
    """ORB features counted by visual word, weighted by tf-idf, found by an inverted index.

    Source: Gálvez-López and Tardós, Bags of Binary Words, TRO 2012 (vocabulary tree, inverted
    index and the L1 score, Sec. III and IV); Grana et al., ICIAPR 2013 (k-majority); ORB by Rublee
    et al., ICCV 2011. Unlike DBoW2's, the vocabulary is learned from the references of the run:
    the method never meets words that it lacks. Its tree has two levels of 64, not six of 10. No
    geometry is verified.

    The features are upright, as the BRIEF of the first source: a robot's camera hardly rolls, and
    turned by the orientation of their corners they find far less on SPED and corridor.
    """

    name = "ORB bag of words"

    def __init__(self) -> None:
        self._orb = cv2.ORB.create(
            nfeatures=_KEYPOINTS, edgeThreshold=_EDGE_PX, fastThreshold=_FAST_THRESHOLD
        )
        self._count = 0
        self._vocabulary = _Vocabulary(_no_descriptors(), np.random.default_rng(_SEED))
        self._index_words([])

    @property
    def bytes_per_place(self) -> float:
        """The postings; the vocabulary, as a network's weights, is the same for any map."""
        return (self._images.nbytes + self._weights.nbytes) / max(self._count, 1)

    def fit(self, references: Sequence[Path], progress: Callable[[], None] = lambda: None) -> None:
        """See Baseline. Some hundred references are read twice: words are learned from them."""
        _check_references(references, self.name)
        rng = np.random.default_rng(_SEED)
        count = min(len(references), _LEARNED_FROM_IMAGES)
        share = _LEARNED_FROM_DESCRIPTORS // count
        sample = [
            rng.permutation(self._describe(read_image(references[i])))[:share]
            for i in np.linspace(0, len(references) - 1, count).astype(int)
        ]
        self._vocabulary = _Vocabulary(np.concatenate(sample), rng)
        found = []
        for path in references:
            found.append(self._words(read_image(path)))
            progress()
        self._index_words(found)

    def rank(self, image: NDArray[np.uint8]) -> Ranking:
        """See Baseline. Scores are the first source's L1: between vectors of weights that each
        sum to 1, it is the sum of the smaller of each pair."""
        words, counts = self._words(image)
        weights = counts * self._idf[words]
        weights = weights / max(weights.sum(), 1e-12)
        begin, length = self._first[words], np.diff(self._first)[words]
        # The postings of all words of the query, stretch after stretch.
        within = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
        rows = np.repeat(begin, length) + within
        shared = np.minimum(np.repeat(weights, length), self._weights[rows])
        scores = np.bincount(self._images[rows], shared, self._count)
        return _ranking(scores.astype(np.float32))

    def _index_words(self, found: list[tuple[NDArray[np.int64], NDArray[np.int64]]]) -> None:
        """Postings (image, weight) sorted by word, from the words and counts of each image."""
        self._count = len(found)
        none = np.empty(0, np.int64)
        words = np.concatenate([none, *(w for w, _ in found)])
        counts = np.concatenate([none, *(c for _, c in found)])
        images = np.concatenate([none, *(np.full(len(w), i) for i, (w, _) in enumerate(found))])
        with_word = np.bincount(words, minlength=self._vocabulary.size)
        self._idf = np.log(self._count / np.maximum(with_word, 1))
        weights = counts * self._idf[words]
        weights = weights / np.maximum(np.bincount(images, weights), 1e-12)[images]
        by_word = np.argsort(words, kind="stable")
        self._images = images[by_word].astype(np.int32)
        self._weights = weights[by_word].astype(np.float32)
        self._first = np.concatenate([[0], np.cumsum(with_word)])

    def _words(self, image: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The words of an image, ascending, and how often each occurs; int64."""
        words = self._vocabulary.words(self._describe(image))
        return np.unique(words, return_counts=True)

    def _describe(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Upright ORB descriptors, uint8 [<=1000, 32]."""
        gray = _gray(image, _LEAST_PIXELS, _MOST_PIXELS)
        keypoints = self._orb.detect(gray, None)
        for keypoint in keypoints:
            keypoint.angle = 0.0
        _, descriptors = self._orb.compute(gray, keypoints)
        return _no_descriptors() if descriptors is None else descriptors


class PooledFeatures:
    """Gradients pooled over a grid of cells by orientation; nothing is learned.

    Source: Dalal and Triggs, CVPR 2005, as place recognition compares with it (Zaffar et al.,
    VPR-Bench, IJCV 2021). There are no overlapping blocks, each brought to one length: on the
    small images of SPED and corridor that finds less, as it turns the noise of a bare wall into
    structure. Instead the square root is taken, as RootSIFT does (Arandjelović and Zisserman, CVPR
    2012), lest a few strong edges decide alone: that finds much more on corridor, and on SPED more
    among the first five but a little less at rank 1.
    """

    name = "HOG (pooled gradients)"

    def __init__(self) -> None:
        cells = _HOG_PX // _CELL_PX
        self._features = np.empty((0, cells * cells * _ORIENTATIONS), np.float32)

    @property
    def bytes_per_place(self) -> float:
        """The descriptor."""
        return float(self._features.itemsize * self._features.shape[1])

    def fit(self, references: Sequence[Path], progress: Callable[[], None] = lambda: None) -> None:
        """See Baseline."""
        _check_references(references, self.name)
        features = []
        for path in references:
            features.append(_gradients(read_image(path)))
            progress()
        self._features = np.stack(features)

    def rank(self, image: NDArray[np.uint8]) -> Ranking:
        """See Baseline. Scores are cosines."""
        # Not `@`: the threads of BLAS and those of OpenCV wait for one another's cores, and a
        # query among 439 references took 8 ms instead of 0.7 on a machine with two.
        return _ranking(np.einsum("nd,d->n", self._features, _gradients(image)))


class VladOfSift:
    """Residuals of dense SIFT to the nearest of 64 words, summed for each word.

    Source: Jégou et al., Aggregating Local Image Descriptors into Compact Codes, TPAMI 2012 (VLAD,
    power and L2 normalisation, Sec. III); the dense, upright SIFT is that of Torii et al., 24/7
    Place Recognition by View Synthesis, CVPR 2015 (DenseVLAD); RootSIFT by Arandjelović and
    Zisserman, CVPR 2012. The words are learned from the references of the run. Images are reduced
    to 160x120 pixels, and there is no PCA.
    """

    name = "VLAD (dense SIFT)"

    def __init__(self) -> None:
        self._sift = cv2.SIFT.create()
        self._centers = np.zeros((1, _SIFT_DIM), np.float32)
        self._features = np.empty((0, _SIFT_DIM), np.float32)

    @property
    def bytes_per_place(self) -> float:
        """The descriptor; the words, as a network's weights, are the same for any map."""
        return float(self._features.itemsize * self._features.shape[1])

    def fit(self, references: Sequence[Path], progress: Callable[[], None] = lambda: None) -> None:
        """See Baseline. Some hundred references are read twice: words are learned from them."""
        from sklearn.cluster import KMeans

        _check_references(references, self.name)
        rng = np.random.default_rng(_SEED)
        count = min(len(references), _LEARNED_FROM_IMAGES)
        share = _CENTERS_FROM_DESCRIPTORS // count
        sample = np.concatenate(
            [
                rng.permutation(self._describe(read_image(references[i])))[:share]
                for i in np.linspace(0, len(references) - 1, count).astype(int)
            ]
        )
        # Images that show nothing have no descriptors; then one word of zeros stands for none.
        self._centers = np.zeros((1, _SIFT_DIM), np.float32)
        words = min(_CENTERS, len(np.unique(sample, axis=0)))
        if words:
            means = KMeans(words, n_init=1, max_iter=20, random_state=_SEED).fit(sample)
            self._centers = means.cluster_centers_.astype(np.float32)
        features = []
        for path in references:
            features.append(self._vlad(read_image(path)))
            progress()
        self._features = np.stack(features)

    def rank(self, image: NDArray[np.uint8]) -> Ranking:
        """See Baseline. Scores are cosines, which go from -1 to 1, scaled to 0 to 1."""
        vlad = self._vlad(image)
        shown = self._features.any(1) & vlad.any()
        if not shown.any():
            return _ranking(np.empty(0, np.float32))
        # See PooledFeatures.rank.
        cosine = np.einsum("nd,d->n", self._features, vlad)
        return _ranking(np.where(shown, np.clip((1 + cosine) / 2, 1e-6, 1), 0).astype(np.float32))

    def _vlad(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Of an RGB image, float32 [words * 128] of length 1, or 0 where it shows nothing."""
        descriptors = self._describe(image)
        centers = self._centers
        distance = (centers**2).sum(1) - 2 * np.einsum("nd,wd->nw", descriptors, centers)
        word = distance.argmin(1)
        residuals = np.zeros_like(centers)
        np.add.at(residuals, word, descriptors - centers[word])
        root = np.sign(residuals) * np.sqrt(np.abs(residuals))
        return (root.ravel() / max(float(np.linalg.norm(root)), 1e-12)).astype(np.float32)

    def _describe(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """RootSIFT on a grid, float32 [n, 128]; patches without any gradient are left out."""
        gray = _gray(image, _VLAD_PIXELS, _VLAD_PIXELS)
        height, width = gray.shape
        keypoints = [
            cv2.KeyPoint(float(x), float(y), float(size), 0.0)
            for size in _PATCHES_PX
            for y in range(_STEP_PX // 2, height, _STEP_PX)
            for x in range(_STEP_PX // 2, width, _STEP_PX)
        ]
        _, descriptors = self._sift.compute(gray, keypoints)
        if descriptors is None:
            return np.empty((0, _SIFT_DIM), np.float32)
        total = descriptors.sum(1, keepdims=True)
        seen = total[:, 0] > 0
        root: NDArray[np.float32] = np.sqrt(descriptors[seen] / total[seen])
        return root


@dataclass(frozen=True)
class BaselineResult:
    """What `metrics.recall_at` and `metrics.median_p95` take, one entry for each query."""

    name: str
    ranked: list[list[int]]  # indices of the references; empty where nothing was found
    scores: list[float]  # of the best, 0 where nothing was found
    times_ms: list[float]  # to describe and search, without reading the file
    bytes_per_place: float


def evaluate_baseline(
    baseline: Baseline,
    references: Sequence[Path],
    queries: Sequence[Path],
    depth: int = 10,
    progress: Callable[[], None] = lambda: None,
) -> BaselineResult:
    """Fit a baseline to the references, then rank them for each query.

    Args:
        depth: how many references are kept of each ranking.
        progress: called after each image.

    Raises:
        DatasetError: no references, or an image that cannot be read.
        ConfigError: depth below 1.
    """
    if depth < 1:
        raise ConfigError(f"depth is {depth}, which keeps no reference; give 1 or more")
    baseline.fit(references, progress)
    # What runs before anything is warm is not counted; those queries run once more.
    for path in queries[:_WARM_UP]:
        baseline.rank(read_image(path))
    ranked, scores, times_ms = [], [], []
    for path in queries:
        image = read_image(path)
        started = time.perf_counter()
        order, similarities = baseline.rank(image)
        times_ms.append(1e3 * (time.perf_counter() - started))
        ranked.append(order[:depth].tolist())
        scores.append(float(similarities[0]) if len(similarities) else 0.0)
        progress()
    return BaselineResult(baseline.name, ranked, scores, times_ms, baseline.bytes_per_place)


class _Vocabulary:
    """A tree of binary words with two levels.

    A descriptor is compared with 64 branches and the 64 words of one of them instead of 4,096
    words: a tenth of the time, for one or two points of recall.

    Args:
        descriptors: uint8 [N, 32]; without any there are no words.
    """

    def __init__(self, descriptors: NDArray[np.uint8], rng: np.random.Generator) -> None:
        self._branches = _k_majority(descriptors, rng)
        branch = _nearest(descriptors, self._branches)
        self._words = []
        for i, center in enumerate(self._branches):
            members = descriptors[branch == i]
            self._words.append(_k_majority(members if len(members) else center[np.newaxis], rng))
        sizes = [len(w) for w in self._words]
        self._first = np.cumsum([0, *sizes])
        self.size = sum(sizes)

    def words(self, descriptors: NDArray[np.uint8]) -> NDArray[np.int64]:
        """The word of each descriptor, int64 [N]; none where there are no words."""
        branch = _nearest(descriptors, self._branches)
        words = np.empty(len(branch), np.int64)
        for i in np.unique(branch):
            mine = branch == i
            words[mine] = self._first[i] + _nearest(descriptors[mine], self._words[i])
        return words


def _k_majority(descriptors: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """k-means on bits: the nearest center by Hamming distance, then the majority of each bit.

    Args:
        descriptors: uint8 [N, 32].

    Returns:
        centers, uint8 [<=64, 32]; none without descriptors.
    """
    if not len(descriptors):
        return _no_descriptors()
    count = min(_BRANCHES, max(1, len(descriptors) // _DESCRIPTORS_PER_WORD))
    centers = descriptors[rng.choice(len(descriptors), count, replace=False)]
    bits = np.unpackbits(descriptors, axis=1)
    for _ in range(_ITERATIONS):
        nearest = _nearest(descriptors, centers)
        order = np.argsort(nearest, kind="stable")
        used, first, members = np.unique(nearest[order], return_index=True, return_counts=True)
        ones = np.add.reduceat(bits[order], first, axis=0, dtype=np.int32)
        centers[used] = np.packbits(2 * ones > members[:, np.newaxis], axis=1)
    return centers


def _nearest(descriptors: NDArray[np.uint8], centers: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The index of the nearest center of each descriptor, int64 [N]; empty without centers."""
    if not len(descriptors) or not len(centers):
        return np.empty(0, np.int64)
    matches = cv2.BFMatcher(cv2.NORM_HAMMING).match(descriptors, centers)
    return np.array([m.trainIdx for m in matches], np.int64)


def _no_descriptors() -> NDArray[np.uint8]:
    return np.empty((0, 32), np.uint8)


def _gray(image: NDArray[np.uint8], least: int, most: int) -> NDArray[np.uint8]:
    """An RGB image in gray, uint8 [H, W], scaled to a number of pixels in a range."""
    check_rgb(image)
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    scale = math.sqrt(min(max(gray.size, least), most) / gray.size)
    height, width = (max(1, round(scale * side)) for side in gray.shape)
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    scaled: NDArray[np.uint8] = cv2.resize(gray, (width, height), interpolation=method)
    return scaled


def _gradients(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Of an RGB image, the root of gradient magnitude by cell and orientation: float32 [2304] of
    length 1, or 0 where there is no gradient."""
    gray = cv2.cvtColor(resize(image, _HOG_PX, _HOG_PX), cv2.COLOR_RGB2GRAY)
    gray = cv2.GaussianBlur(gray, (0, 0), _BLUR_PX)
    magnitude, angle = cv2.cartToPolar(
        cv2.Sobel(gray, cv2.CV_32F, 1, 0, ksize=1), cv2.Sobel(gray, cv2.CV_32F, 0, 1, ksize=1)
    )
    # A gradient counts for the two orientations it lies between, and as its opposite does.
    position = angle.ravel() * (_ORIENTATIONS / math.pi)
    lower = np.floor(position).astype(np.int64)
    upper_share = position - lower
    cells = _HOG_PX // _CELL_PX
    row, column = np.indices(gray.shape) // _CELL_PX
    first_bin = (row * cells + column).ravel() * _ORIENTATIONS
    bins = np.concatenate(
        [first_bin + lower % _ORIENTATIONS, first_bin + (lower + 1) % _ORIENTATIONS]
    )
    shares = np.concatenate([1 - upper_share, upper_share]) * np.tile(magnitude.ravel(), 2)
    root = np.sqrt(np.bincount(bins, shares, cells * cells * _ORIENTATIONS))
    return (root / max(np.linalg.norm(root), 1e-12)).astype(np.float32)


def _ranking(scores: NDArray[np.float32]) -> Ranking:
    """Indices and scores above 0, best first; the lower index among equals."""
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] > 0]
    return order, scores[order]


def _check_references(references: Sequence[Path], name: str) -> None:
    if not len(references):
        raise DatasetError(
            f"{name}: there are no references, so no place can be found; give at least one image"
        )


# What a run can be compared with, by the name a user types.
BASELINES: dict[str, Callable[[], Baseline]] = {
    "orb": BagOfBinaryWords,
    "hog": PooledFeatures,
    "vlad": VladOfSift,
}
