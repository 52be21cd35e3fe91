"""The cache of features: which view is whose, two runs at once, a full disk."""

import errno
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from hashvpr_ros.errors import DatasetError
from hashvpr_ros.training.cache import StageCache
from hashvpr_ros.training.images import PLAIN, ImageReader

VIEWS = 3
# A double of a network: the cache asks its backbone for nothing but its weights.
NETWORK = torch.nn.ModuleDict({"backbone": torch.nn.Linear(2, 2)})


def stages_of(images):
    """A double of a backbone: the pixels, and their mean."""
    return [images.float(), images.float().mean((1, 2))]


@pytest.fixture
def reader(tmp_path):
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{i}.png" for i in range(7)]
    for path in paths:
        cv2.imwrite(str(path), cv2.resize(rng.integers(0, 256, (3, 4, 3), np.uint8), (16, 12)))
    return ImageReader(paths, 12, 16, "camera")


def make(folder, reader, stages_of=stages_of, progress=lambda _: None):
    return StageCache(
        folder, NETWORK, stages_of, reader, views=VIEWS, seed=5, workers=0, progress=progress
    )


def test_a_key_gives_a_view_of_its_own_image(reader, tmp_path):
    cache = make(tmp_path / "cache", reader)
    numbers = range(len(reader.paths))
    plain = torch.stack([reader[i, PLAIN] for i in numbers])
    augmented = np.random.default_rng(5).integers(2**62, size=(len(numbers), VIEWS))
    wanted = [
        plain,
        *(torch.stack([reader[i, int(augmented[i, v])] for i in numbers]) for v in (1, 2)),
    ]
    for seed, view in ((PLAIN, 0), (0, 0), (1, 1), (2, 2), (3, 0), (7, 1), (2**61, 2**61 % 3)):
        pixels, mean = cache.stages([(i, seed) for i in numbers])
        assert torch.equal(pixels, wanted[view].float()), (seed, view)
        torch.testing.assert_close(mean, wanted[view].float().mean((1, 2)), rtol=1e-3, atol=0)
    assert not torch.equal(wanted[1], wanted[2]) and not torch.equal(wanted[0], wanted[1])
    # In any order, and each as often as it is asked for.
    pixels, _ = cache.stages([(6, PLAIN), (2, PLAIN), (6, PLAIN)])
    assert torch.equal(pixels, plain[[6, 2, 6]].float())


def test_of_two_runs_at_once_one_makes_it(reader, tmp_path):
    begun, go_on, made = threading.Event(), threading.Event(), []

    def slow(images):
        begun.set()
        assert go_on.wait(20)
        return stages_of(images)

    def run(stages_of):
        made.append(make(tmp_path / "cache", reader, stages_of))

    second_makes = threading.Event()

    def second(images):
        second_makes.set()
        return stages_of(images)

    runs = [threading.Thread(target=run, args=(of,)) for of in (slow, second)]
    runs[0].start()
    assert begun.wait(20)
    runs[1].start()
    assert not second_makes.wait(0.5)
    go_on.set()
    for thread in runs:
        thread.join(20)
    keys = [(i, 1) for i in range(7)]
    first, again = (cache.stages(keys)[0] for cache in made)
    assert not second_makes.is_set() and torch.equal(first, again)
    assert float(first.amin((1, 2, 3)).max()) > 0  # and no file was emptied meanwhile


def test_all_the_space_is_taken_before_anything_is_written(reader, tmp_path):
    taken = []

    def progress(_):
        taken.append([p.stat() for p in sorted((tmp_path / "cache").rglob("*.f16"))])

    make(tmp_path / "cache", reader, progress=progress)
    sizes = [21 * 12 * 16 * 3 * 2, 21 * 3 * 2]
    assert [s.st_size for s in taken[0]] == sizes
    assert all(512 * s.st_blocks >= size for s, size in zip(taken[0], sizes, strict=True))


def test_a_full_disk_by_a_double(reader, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DatasetError, match=r"needs 2\.43e-05 GB, .* \(No space left") as e:
        make(tmp_path / "cache", reader)
    assert str(tmp_path / "cache") in str(e.value)
    assert not list((tmp_path / "cache").rglob("*.f16"))


def test_a_full_disk(reader, tmp_path):
    """Of 100 kB, by a process of its own: one that wrote into mapped memory would be killed."""
    disk = tmp_path / "disk"
    disk.mkdir()
    script = (
        "import sys; from pathlib import Path\n"
        "import test_cache as t\n"
        "reader = t.ImageReader(sorted(Path(sys.argv[1]).glob('*.png')) * 9, 12, 16, 'none')\n"
        "try: t.make(Path(sys.argv[1]) / 'disk', reader)\n"
        "except t.DatasetError as e: print(e)\n"
    )
    mount = f"mount -t tmpfs -o size=100k none '{disk}' || exit 77; exec \"$@\""
    if not shutil.which("unshare"):
        pytest.skip("no small disk can be mounted: there is no unshare")
    here = Path(__file__).resolve()
    environment = os.environ | {"PYTHONPATH": f"{here.parents[3]}:{here.parent}"}
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", mount, "sh", sys.executable, "-c", script, tmp_path],
        capture_output=True, text=True, timeout=100, env=environment,
    )  # fmt: skip
    if done.returncode in (1, 77) and ("unshare" in done.stderr or "mount" in done.stderr):
        pytest.skip(f"no small disk can be mounted: {done.stderr}")
    assert done.returncode == 0, (done.returncode, done.stderr)
    assert "GB, which cannot be had (No space left on device)" in done.stdout


@pytest.mark.parametrize(
    "content",
    [
        b"", b"[]", b"{}", b"[[1]]", b"[[-3], [3]]", b'[["a"], [3]]', b"[" * 100_000, b"null",
        b"[[99999999999999999999999], [3]]", b"\xff", b"[[12, 16, 4], [3]]", b"[1, 2]",
    ],
)  # fmt: skip
def test_a_damaged_table_of_contents_is_said(reader, tmp_path, content):
    folder = make(tmp_path / "cache", reader).folder
    (folder / "complete.json").write_bytes(content)
    with pytest.raises(DatasetError, match=r"complete\.json|the cache cannot be .* read") as e:
        make(tmp_path / "cache", reader)
    assert str(folder) in str(e.value) and "\n" not in str(e.value) and len(str(e.value)) < 500


def test_features_that_are_no_regular_file(reader, tmp_path):
    folder = make(tmp_path / "cache", reader).folder
    (folder / "1.f16").unlink()
    os.mkfifo(folder / "1.f16")
    with pytest.raises(DatasetError, match=r"1\.f16: is a FIFO"):
        make(tmp_path / "cache", reader)


def test_links_that_another_laid_are_not_followed(reader, tmp_path):
    folder, victim = make(tmp_path / "cache", reader).folder, tmp_path / "victim"
    victim.write_text("mine")
    for name in ("lock", "0.f16", "complete.json", "complete.json.new"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(victim if name != "complete.json" else tmp_path / "none")
    with pytest.raises(DatasetError, match="cannot be written or read"):
        make(tmp_path / "cache", reader)
    (folder / "lock").unlink()
    make(tmp_path / "cache", reader)
    assert victim.read_text() == "mine"
