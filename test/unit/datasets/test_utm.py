"""The layout of the VPR benchmarks: positions in names, the radius, what does not fit."""

import cv2
import numpy as np
import pytest

from hashvpr_ros.datasets.folder import read_image
from hashvpr_ros.datasets.utm import UtmTraverses, is_utm
from hashvpr_ros.errors import ConfigError, DatasetError

RGB = np.random.default_rng(0).integers(0, 256, (8, 10, 3), np.uint8)
FULL = "@0585001.23@4476000.12@17@T@040.44@-079.99@pano_id@01@030@001@@@201901@note@.jpg"


def save(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), RGB)
    return path


def make(folder, database, queries):
    """Images at positions (east, north), or of whole names."""
    for part, images in (("database", database), ("queries", queries)):
        for i, image in enumerate(images):
            name = image if isinstance(image, str) else f"@{image[0]}@{image[1]}@{i}@.jpg"
            save(folder / part / name)
    return folder


def at(dataset, query_xy, reference_xy):
    """The same with other positions, without that many files."""
    dataset.query_xy = np.array(query_xy, np.float64)
    dataset.reference_xy = np.array(reference_xy, np.float64)
    return dataset


def refused(folder, *words):
    with pytest.raises(DatasetError) as e:
        UtmTraverses(folder)
    text = str(e.value)
    assert str(folder) in text and "\n" not in text
    for word in words:
        assert word in text, text


@pytest.fixture
def small(tmp_path):
    return UtmTraverses(make(tmp_path / "small", [(0, 0)], [(0, 0)]))


@pytest.mark.parametrize("below", ["", "images/test"])
def test_names_tell_positions_and_the_radius_what_is_correct(tmp_path, below):
    near, limit, far = (585011.23, 4476000.12), (585001.23, 4476025.12), (585001.23, 4476025.13)
    make(tmp_path / below, [near, limit, far], [FULL, (0, -3.5)])
    dataset = UtmTraverses(tmp_path)
    assert is_utm(tmp_path)
    assert [p.name for p in dataset.references] == [
        "@585001.23@4476025.12@1@.jpg", "@585001.23@4476025.13@2@.jpg",
        "@585011.23@4476000.12@0@.jpg",
    ]  # fmt: skip
    assert all(read_image(p).shape == RGB.shape for p in dataset.queries + dataset.references)
    assert dataset.query_xy.dtype == dataset.reference_xy.dtype == np.float64
    assert dataset.query_xy.tolist() == [[585001.23, 4476000.12], [0, -3.5]]
    assert dataset.reference_xy.tolist() == [list(limit), list(far), list(near)]
    assert dataset.positives() == [{0, 2}, set()]
    assert UtmTraverses(tmp_path, 26).positives() == [{0, 1, 2}, set()]
    with pytest.raises(DatasetError, match="no query is within 0 m of a reference"):
        UtmTraverses(tmp_path, 0.0).positives()


def test_every_kind_of_image_in_folders_within(tmp_path):
    make(tmp_path, ["a/b/@1@2@.PNG", "@3@4.jpeg", "c/@-1.5@+2e1@x@.webp"], ["@1@2@@@@@.bmp"])
    for name in ("database/notes.txt", "database/a/README@1@2@", "queries/._@1@2@.jpg"):
        (tmp_path / name).write_bytes(b"no image")
    save(tmp_path / "database" / ".thumbnails" / "@9@9@.jpg")
    (tmp_path / "database" / "folder.jpg").mkdir()
    (tmp_path / "database" / "loop").symlink_to(tmp_path / "database")
    dataset = UtmTraverses(tmp_path)
    database = tmp_path / "database"
    names = ["@3@4.jpeg", "a/b/@1@2@.PNG", "c/@-1.5@+2e1@x@.webp"]
    assert [str(p.relative_to(database)) for p in dataset.references] == names
    assert dataset.reference_xy.tolist() == [[3, 4], [1, 2], [-1.5, 20]]
    assert dataset.positives() == [{0, 1, 2}]


def test_links_are_followed(tmp_path):
    make(tmp_path / "set", [(0, 0)], [(0, 0)])
    make(tmp_path / "disk", [(30, 0), (33, 0)], [])
    (tmp_path / "set" / "database" / "01").symlink_to(tmp_path / "disk" / "database")
    (tmp_path / "set" / "database" / "again").symlink_to(tmp_path / "disk" / "database")
    (tmp_path / "disk" / "database" / "up").symlink_to(tmp_path / "set" / "database")
    assert len(UtmTraverses(tmp_path / "set").references) == 3
    (tmp_path / "linked").mkdir()
    for part in ("database", "queries"):
        (tmp_path / "linked" / part).symlink_to(tmp_path / "set" / part)
    assert is_utm(tmp_path / "linked") and len(UtmTraverses(tmp_path / "linked").references) == 3


def test_what_is_not_read_is_said(tmp_path):
    """A link that a copy has turned into a text, one that leads nowhere, and other files."""
    make(tmp_path, [(0, 0)], [(0, 0)])
    (tmp_path / "database" / "01").write_text("../more")
    (tmp_path / "database" / "02").symlink_to(tmp_path / "nowhere")
    (tmp_path / "database" / "03").mkdir()
    (tmp_path / "database" / "03" / "@1@2@.ppm").write_bytes(b"P6")
    (note,) = UtmTraverses(tmp_path).notes
    assert note.startswith(f"{tmp_path / 'database'}: 3 files are not read")
    assert "1 with .ppm, 2 with no suffix" in note


@pytest.mark.parametrize("exchanged", [False, True])
def test_degrees_are_no_metres(tmp_path, exchanged):
    """Each reference would be correct for each query."""
    names = [f"@{47 + 0.01 * i:.4f}@{8 + 0.02 * i:.4f}@.jpg" for i in range(5)]
    if exchanged:
        names = [f"@{8 + 0.02 * i:.4f}@{47 + 0.01 * i:.4f}@.jpg" for i in range(5)]
    dataset = UtmTraverses(make(tmp_path, names, names))
    with pytest.raises(DatasetError, match="latitude and longitude"):
        dataset.positives()


def test_where_no_query_has_a_reference_the_reason_is_said(tmp_path):
    far = UtmTraverses(make(tmp_path / "far", [(585000, 4476000)], [(585100, 4476000)]))
    with pytest.raises(DatasetError, match=r"no query is within 25 m of a reference.*--radius"):
        far.positives()
    swapped = make(tmp_path / "swapped", [(585000, 4476000), (585050, 4476000)],
                   [(4476000, 585001), (4476000, 595000)])  # fmt: skip
    with pytest.raises(DatasetError, match="1 of 2 are with east and north exchanged"):
        UtmTraverses(swapped).positives()


def test_several_images_of_one_position(tmp_path):
    dataset = UtmTraverses(make(tmp_path, [(5, 5)] * 4, [(5, 5), (5, 6)]), 0.5)
    assert dataset.positives() == [{0, 1, 2, 3}, set()]


@pytest.mark.parametrize("spread", [(500, 500), (500, 0), (0, 500), (0, 0)])
def test_the_same_as_by_all_distances(small, spread):
    rng = np.random.default_rng(1)
    origin = np.array([585000.0, 4476000.0])
    queries, references = (
        np.round(origin + rng.uniform(-0.5, 0.5, (n, 2)) * spread, 2) for n in (60, 300)
    )
    distances = np.hypot(*(queries[:, None] - references[None]).transpose(2, 0, 1))
    wanted = [set(np.flatnonzero(row <= 25).tolist()) for row in distances]
    assert at(small, queries, references).positives() == wanted
    assert all(isinstance(i, int) for found in wanted for i in found)


def test_a_hundred_thousand_references(small):
    rng = np.random.default_rng(2)
    queries, references = rng.uniform(0, 20_000, (1000, 2)), rng.uniform(0, 20_000, (100_000, 2))
    found = at(small, queries, references).positives()
    wanted = np.pi * 25**2 / 20_000**2 * 100_000
    assert 0.5 * wanted < np.mean([len(f) for f in found]) < 2 * wanted


def test_neighbours_by_name_are_not_neighbours(small):
    assert small.positives(0) == [{0}]
    with pytest.raises(ConfigError, match=r"takes no --tolerance.*set --radius") as e:
        small.positives(1)
    assert str(small.folder) in str(e.value)


@pytest.mark.parametrize("radius_m", [-1, float("nan"), float("inf")])
def test_a_radius_that_is_none(small, radius_m):
    with pytest.raises(ConfigError, match=r"radius_m is .*give a distance"):
        UtmTraverses(small.folder, radius_m)


@pytest.mark.parametrize(
    "name",
    ["0001.jpg", "@1.jpg", "@1@.jpg", "@@@.jpg", "@east@north@.jpg", "@1@@2@.jpg", "1@2.jpg",
     "@nan@1@.jpg", "@1@inf@.jpg", "@1e400@1@.jpg", "@1@-1e9@.jpg", "@1,5@2@.jpg", "@0x1@2@.jpg"],
)  # fmt: skip
@pytest.mark.parametrize("part", ["database", "queries"])
def test_names_without_a_position(tmp_path, name, part):
    make(tmp_path, [(0, 0)], [(0, 0)])
    path = save(tmp_path / part / name)
    refused(tmp_path, f"{path}: ", "@utm_east@utm_north@", "rename or remove")


def test_folders_that_do_not_fit(tmp_path):
    refused(tmp_path / "no", "no such folder", "correct the path")
    refused(tmp_path, "has no folders database/ and queries/", "give the folder")
    refused(save(tmp_path / "@1@2@.jpg"), "is a file, not a folder")
    for part in ("database", "queries"):
        folder = tmp_path / f"only {part}"
        save(folder / part / FULL)
        refused(folder, "has no folders database/ and queries/")
        assert not is_utm(folder)
    for part, other in (("database", "queries"), ("queries", "database")):
        folder = tmp_path / f"no images in {part}"
        save(folder / other / FULL)
        (folder / part / "deep").mkdir(parents=True)
        (folder / part / "deep" / "@1@2@.txt").write_text("text")
        refused(folder, f"{folder / part}: holds no images", ".jpg", "put them there")
        assert is_utm(folder)


def test_a_folder_that_cannot_be_read(tmp_path, monkeypatch):
    folder = make(tmp_path, [FULL], [FULL])

    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.scandir", denied)
    refused(folder, "cannot be read: Permission denied", "correct its rights")


def test_other_names_are_of_another_layout(tmp_path):
    assert not is_utm(make(tmp_path, ["1.jpg", "2.jpg"], ["1.jpg"]))
    assert not is_utm(tmp_path / "no")
