"""The baselines find real and made places, say nothing of what shows nothing, and repeat."""

import cv2
import numpy as np
import pytest

from hashvpr_ros.datasets.folder import read_image
from hashvpr_ros.datasets.vpr_bench import VprBench
from hashvpr_ros.errors import ConfigError, DatasetError, ImageError
from hashvpr_ros.evaluation import baselines
from hashvpr_ros.evaluation.baselines import BASELINES, evaluate_baseline
from hashvpr_ros.evaluation.metrics import recall_at

PLACES = 6
GRAY = np.full((120, 160, 3), 128, np.uint8)


def texture(seed, height=120, width=160):
    patches = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), np.uint8)
    return cv2.resize(patches, (width, height), interpolation=cv2.INTER_NEAREST)


def seen_again(image):
    """From a step aside, by worse light, with noise."""
    height, width = image.shape[:2]
    move = cv2.getRotationMatrix2D((width / 2, height / 2), 1.0, 1.02)
    move[:, 2] += 2, -1
    moved = cv2.warpAffine(image, move, (width, height), borderMode=cv2.BORDER_REFLECT)
    noise = np.random.default_rng(1).normal(0, 3, image.shape)
    return np.clip(0.7 * moved + 20 + noise, 0, 255).astype(np.uint8)


def save(folder, images):
    folder.mkdir()
    paths = [folder / f"{i}.png" for i in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        assert cv2.imwrite(str(path), image[..., ::-1])
    return paths


@pytest.fixture
def places(tmp_path):
    return save(tmp_path / "ref", [texture(i) for i in range(PLACES)])


@pytest.fixture(params=BASELINES)
def baseline(request):
    return BASELINES[request.param]()


def test_a_place_seen_again_ranks_first(baseline, places):
    baseline.fit(places)
    for i in range(PLACES):
        order, scores = baseline.rank(seen_again(texture(i)))
        assert order[0] == i and order.dtype == np.int64 and scores.dtype == np.float32
        assert len(set(order.tolist())) == len(order) == len(scores) <= PLACES
        assert scores[-1] > 0 and scores[0] <= 1.0001
        assert (np.diff(scores) <= 0).all()
        assert scores[0] > 1.05 * scores[1]
    same, scores = baseline.rank(texture(2))
    assert same[0] == 2 and scores[0] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("size", [(65, 97), (480, 640), (600, 900)])
def test_images_of_any_size(baseline, tmp_path, size):
    baseline.fit(save(tmp_path / "ref", [texture(i, *size) for i in range(4)]))
    assert [baseline.rank(seen_again(texture(i, *size)))[0][0] for i in range(4)] == [0, 1, 2, 3]


@pytest.mark.parametrize("shape", [(1, 1), (1, 900), (900, 2), (17, 40)])
def test_images_hardly_worth_the_name(baseline, places, shape):
    baseline.fit(places)
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    order, scores = baseline.rank(noise)
    assert len(order) == len(scores) <= PLACES


def test_an_image_that_shows_nothing_finds_nothing(baseline, places):
    baseline.fit(places)
    order, scores = baseline.rank(GRAY)
    assert len(order) == len(scores) == 0


def test_references_that_show_nothing(baseline, places, tmp_path):
    (blank,) = save(tmp_path / "blank", [GRAY])
    baseline.fit([blank, *places])
    order, _ = baseline.rank(seen_again(texture(0)))
    assert order[0] == 1 and 0 not in order
    result = evaluate_baseline(baseline, [blank, blank], places[:2], depth=5)
    assert result.ranked == [[], []] and result.scores == [0.0, 0.0]


def test_before_any_references_nothing_is_found(baseline):
    assert len(baseline.rank(texture(0))[0]) == 0


def test_fitting_anew_forgets_the_references_before(baseline, places):
    baseline.fit(places)
    baseline.fit(places[3:])
    assert baseline.rank(texture(4))[0][0] == 1
    assert max(baseline.rank(texture(4))[0]) < 3


def test_the_same_run_gives_the_same_result(baseline, places):
    once, again = (evaluate_baseline(b, places, places) for b in (baseline, type(baseline)()))
    assert once.ranked == again.ranked and once.scores == again.scores
    assert evaluate_baseline(baseline, places, places).ranked == once.ranked


def test_the_result_of_a_run(baseline, places, tmp_path):
    queries = save(tmp_path / "query", [seen_again(texture(i)) for i in range(PLACES - 1)])
    calls = []
    result = evaluate_baseline(baseline, places, queries, 2, lambda: calls.append(None))
    assert result.name == baseline.name
    assert [r[0] for r in result.ranked] == list(range(PLACES - 1))
    assert all(len(r) <= 2 for r in result.ranked)
    assert len(result.scores) == len(result.times_ms) == PLACES - 1 == len(calls) - PLACES
    assert all(t > 0 for t in result.times_ms)
    assert 0 < result.bytes_per_place == baseline.bytes_per_place < 40_000


def test_the_first_queries_run_twice(baseline, places, monkeypatch):
    seen = []
    rank = baseline.rank
    monkeypatch.setattr(baseline, "rank", lambda image: seen.append(None) or rank(image))
    assert len(evaluate_baseline(baseline, places, places).times_ms) == PLACES
    assert len(seen) == PLACES + 3


def test_no_references(baseline):
    with pytest.raises(DatasetError, match=rf"{baseline.name[:3]}.*no references.*give at least"):
        evaluate_baseline(baseline, [], [])


def test_a_depth_that_keeps_nothing(baseline, places):
    with pytest.raises(ConfigError, match=r"depth is 0.*give 1 or more"):
        evaluate_baseline(baseline, places, places, depth=0)


@pytest.mark.parametrize("wrong", ["references", "queries"])
def test_a_damaged_image_is_named(baseline, places, tmp_path, wrong):
    damaged = tmp_path / "damaged.png"
    damaged.write_text("text")
    paths = {"references": places, "queries": places, wrong: [*places, damaged]}
    with pytest.raises(DatasetError, match=r"damaged\.png"):
        evaluate_baseline(baseline, **paths)


def test_what_is_no_image(baseline, places):
    baseline.fit(places)
    with pytest.raises(ImageError, match="RGB"):
        baseline.rank(np.zeros((120, 160), np.uint8))


def test_real_places(baseline, few):
    bench = VprBench(few(20))
    result = evaluate_baseline(baseline, bench.references, bench.queries)
    recall = recall_at(result.ranked, bench.positives(tolerance=1))
    assert recall["1"] >= 40 and recall["5"] >= 80  # by chance: 15 and 60


def test_scores_of_words_equal_an_independent_computation(few):
    """DBoW2's L1 by its own formula, on dense vectors."""
    bench = VprBench(few(6))
    bag = baselines.BagOfBinaryWords()
    bag.fit(bench.references)

    def histogram(path):
        words, counts = bag._words(read_image(path))
        return np.bincount(words, counts, bag._vocabulary.size)

    references = np.stack([histogram(p) for p in bench.references])
    idf = np.log(6 / np.maximum((references > 0).sum(0), 1))
    references = references * idf
    references /= references.sum(1, keepdims=True)
    for path in bench.queries:
        query = histogram(path) * idf
        query /= query.sum()
        expected = 1 - 0.5 * np.abs(references - query).sum(1)
        order, scores = bag.rank(read_image(path))
        assert scores == pytest.approx(expected[order], abs=1e-5)
        missing = np.delete(expected, order)
        assert missing == pytest.approx(np.zeros(len(missing)), abs=1e-5)


def test_k_majority_recovers_the_bits_of_clusters():
    rng = np.random.default_rng(0)
    true = rng.integers(0, 256, (4, 32), np.uint8)
    flips = np.packbits(rng.random((400, 256)) < 0.1, axis=1)
    descriptors = true[np.arange(400) % 4] ^ flips
    centers = baselines._k_majority(descriptors, rng)
    assert centers.shape == (50, 32) and centers.dtype == np.uint8
    distance = np.unpackbits(centers[:, None] ^ true[None], axis=2).sum(2).min(1)
    assert distance.max() < 40  # of 256; between two clusters there are about 128
    one = baselines._k_majority(descriptors[::4][:15], rng)
    assert np.unpackbits(one[0] ^ true[0]).sum() <= 12
    assert len(baselines._k_majority(descriptors[:0], rng)) == 0
