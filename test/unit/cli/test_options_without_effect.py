"""An option that would have no effect is refused."""

import pytest
from cli_helpers import refused

CASES = [
    *(
        (["evaluate", "{few}", option, *value], option)
        for option, value in (
            ("--truth", ["/t"]), ("--map-truth", ["/t"]), ("--image-topic", ["/t"]),
            ("--spacing", ["1"]), ("--angle", ["40"]), ("--allow-partial", []),
            ("--radius", ["5"]), ("--report", ["r.html"]), ("--baselines", []),
            ("--no-baselines", []), ("--queries", ["a=0:1"]), ("--compare-to", ["m"]),
        )
    ),
    *(
        (["evaluate", "--suite", "{few}", option, *value], option)
        for option, value in (
            ("--truth", ["/t"]), ("--map-truth", ["/t"]), ("--image-topic", ["/t"]),
            ("--spacing", ["1"]), ("--angle", ["40"]), ("--allow-partial", []),
            ("--radius", ["5"]), ("--top-k", ["5"]), ("--layout", ["utm"]), ("--ablate", []),
        )
    ),
    (["evaluate", "{few}", "--ablate", "--top-k", "5"], "--top-k"),
    (["evaluate", "{bag}", "--map-bag", "{bag}", "--truth", "/odom", "--layout", "utm"],
     "--layout"),
    (["evaluate", "{bag}", "--map-bag", "{bag}", "--truth", "/odom", "--tolerance", "1"],
     "--tolerance"),
    (["replay", "{bag}", "--radius", "4"], "--radius"),
    (["replay", "{bag}", "--angle", "4"], "--angle"),
    (["replay", "{bag}", "--rate", "1"], "--rate"),
    *(
        (["map", "build", "o", "--images", "{few}/ref", *option], option[0])
        for option in (["--image-topic", "/c"], ["--pose-topic", "/c"], ["--every"],
                       ["--allow-partial"])
    ),
    *(
        (["calibrate", "m", "--clear", *option], option[0])
        for option in (["--bag", "b"], ["--images", "i"], ["--image-topic", "/c"],
                       ["--pose-topic", "/c"], ["--radius", "1"], ["--angle", "1"], ["--dry-run"],
                       ["--set", "a=1"], ["--engine", "e"], ["--json", "j.json"],
                       ["--allow-partial"])
    ),
    *(
        (["calibrate", "m", "--images", "{few}", *option], option[0])
        for option in (["--image-topic", "/c"], ["--pose-topic", "/c"], ["--angle", "1"],
                       ["--allow-partial"])
    ),
    *(
        (["explain", "{bag}", *option], option[0])
        for option in (["--place", "1"], ["--plot", "p.png"], ["--map", "m"], ["--images", "b"])
    ),
    (["explain", "{bag}", "--stamp", "1", "--map", "m"], "--map"),
    (["explain", "{bag}", "--stamp", "1", "--images", "m"], "--images"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "option"), CASES, ids=lambda v: " ".join(v) if v else "")
def test_it_is_refused(run, few, bag, tmp_path, monkeypatch, words, option):
    monkeypatch.chdir(tmp_path)
    places = {"few": few(2), "bag": bag}
    refused(run(*(word.format(**places) for word in words)), option)


def test_a_radius_for_utm(run, few, tmp_path):
    import shutil

    source = few(3)
    for part, folder in (("query", "queries"), ("ref", "database")):
        (tmp_path / "utm" / folder).mkdir(parents=True)
        for i, image in enumerate(sorted((source / part).iterdir())):
            name = f"@{585000 + 20 * i}@{4476000}@.jpg"
            shutil.copy(image, tmp_path / "utm" / folder / name)
    told = {}
    for radius in ([], ["--radius", "10"], ["--radius", "50"]):
        done = run("evaluate", tmp_path / "utm", *radius)
        assert done.code == 0, done.err
        told[tuple(radius)] = done.out
    assert "(median 2)" in told[()]
    assert "(median 1)" in told["--radius", "10"] and "(median 3)" in told["--radius", "50"]
