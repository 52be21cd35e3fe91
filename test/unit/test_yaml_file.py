"""YAML that others wrote: every odd text ends in one short sentence, and so does every value."""

import random
import string

import pytest
import yaml

from hashvpr_ros import yaml_file
from hashvpr_ros.cli.settings import change_of, read_parameter_file
from hashvpr_ros.config import Config, from_flat
from hashvpr_ros.errors import ConfigError
from hashvpr_ros.setting import problem_with, settings
from hashvpr_ros.training.config import TrainConfig, read_config
from hashvpr_ros.yaml_file import parse_yaml, read_yaml

LONGEST = 300  # characters of a message, beside the path

PLAIN = "a: {b: [1, -2.5, 1e3, 1.0e+3, yes, null, text, 'quoted', \"é\"], c: {}}\nd: |\n  lines\n"


def laughs(opening: str, closing: str) -> str:
    """Nine levels, each of which names the one before nine times."""
    lines = [f"a0: &a0 {opening}x{closing}" if opening == "[" else "a0: &a0 {x: 1}"]
    for i in range(1, 10):
        if opening == "[":
            inner = ", ".join([f"*a{i - 1}"] * 9)
        else:
            inner = ", ".join(f"k{k}: *a{i - 1}" for k in range(9))
        lines.append(f"a{i}: &a{i} {opening}{inner}{closing}")
    return "\n".join(lines)


BAD = {
    "lists within aliases": (laughs("[", "]"), "alias"),
    "mappings within aliases": (laughs("{", "}"), "alias"),
    "itself": ("a: &a [*a]", "alias"),
    "itself as a mapping": ("a: &a {b: *a}", "alias"),
    "merged": ("a: &a {b: 1}\nc: {<<: *a}", "alias"),
    "deep lists": ("[" * 100_000, "levels deep|nesting depth"),
    "deep mappings": ("{a: " * 100_000, "levels deep"),
    "deep blocks": ("\n".join(" " * i + "a:" for i in range(800)), "levels deep"),
    "many values": ("[" + "1," * 100_000 + "]", "more than 20000 values"),
    "a number of 100,000 digits": ("a: " + "9" * 100_000, "100000 characters"),
    "a number of 4,000 digits": ("a: !!int 0x" + "f" * 5000, "5002 characters"),
    "a date": ("a: 2001-01-01", "write it in quotes"),
    "a date that is none": ("a: 2001-99-99", "write it in quotes"),
    "a time that is none": ("a: 2001-01-01t99:99:99", "write it in quotes"),
    "binary": ("a: !!binary aGVsbG8=", "tag"),
    "a set": ("a: !!set {b}", "tag"),
    "python": ("a: !!python/object/apply:os.system [touch hacked]", "tag"),
    "python's name": ("a: !!python/name:os.system", "tag"),
    "a tag of its own": ("a: !mine 1", "tag"),
    "a number that is none": ("a: !!int ten", "no int"),
    "a number of nothing": ("a: !!int ", "no int"),
    "a bool of nothing": ("a: !!bool maybe", "no bool"),
    "null characters": ("a: b\0c", "special characters are not allowed|control characters"),
    "control characters": ("a: \x07", "special characters are not allowed|control characters"),
    "a key twice": ("a: 1\na: 2", "'a' twice in line 2"),
    "a number for a key": ("1: a", "'1' in line 1, which is no text"),
    "a bool for a key": ("on: a", "which is no text"),
    "null for a key": ("{~: a}", "which is no text"),
    "a list for a key": ("? [a, b]\n: c", "which is no text"),
    "a mapping for a key": ("{{a: b}: c}", "which is no text"),
    "two documents": ("a: 1\n---\nb: 2", "but found another document"),
    "no end": ("a: [1, 2", "line"),
    "tabs": ("a:\n\t- 1", "line"),
    "a colon": ("a: b: c", "line"),
    "a quote": ("a: 'b", "line"),
    "a directive": ("%YAML 9.9\n--- a", "incompatible|version"),
    "an anchor without end": ("a: &" + "x" * 90_000 + " 1\nb: *" + "x" * 90_000, "alias"),
}


def one_sentence(error: ConfigError, beside: str = "") -> str:
    text = str(error)
    assert "\n" not in text
    assert len(text) <= LONGEST + len(beside), text
    return text


def test_plain_values_are_what_yaml_says(tmp_path):
    (tmp_path / "x.yaml").write_text(PLAIN)
    assert read_yaml(tmp_path / "x.yaml") == parse_yaml(PLAIN, "x") == yaml.safe_load(PLAIN)
    for text in ("", "# nothing", "---"):
        assert parse_yaml(text, "x") is None


@pytest.mark.parametrize("loader", ["C", "Python"])
@pytest.mark.parametrize("case", BAD)
def test_every_odd_text_ends_in_one_sentence(case, loader, monkeypatch, tmp_path):
    text, words = BAD[case]
    monkeypatch.chdir(tmp_path)
    if loader == "Python":
        monkeypatch.setattr(yaml_file, "_LOADER", yaml.SafeLoader)
    with pytest.raises(ConfigError, match=words) as e:
        parse_yaml(text, "x.yaml")
    assert one_sentence(e.value).startswith("x.yaml: cannot be read as YAML")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("case", BAD)
def test_so_it_does_in_every_place_that_takes_yaml(case, tmp_path):
    text, _ = BAD[case]
    path = tmp_path / "x.yaml"
    path.write_text(text)
    for read in (read_config, read_parameter_file):
        with pytest.raises(ConfigError) as e:
            read(path)
        assert one_sentence(e.value, str(path)).startswith(str(path))
    with pytest.raises(ConfigError) as e:
        change_of(f"map.path={text}")
    assert one_sentence(e.value).startswith("--set map.path: ")


def test_what_is_no_file_of_text(tmp_path):
    path = tmp_path / "x.yaml"
    for content, words in ((b"\xff\xfe", "not a UTF-8"), (b"#" * 2_000_000, "2.0 MB")):
        path.write_bytes(content)
        for read in (read_config, read_parameter_file):
            with pytest.raises(ConfigError, match=words) as e:
                read(path)
            one_sentence(e.value, str(path))
    path.write_bytes("\ufeffoutput: x".encode())
    assert read_config(path).output == "x"


ODD = [
    None, True, False, 0, 1, -1, 2**31, 2**63 - 1, 2**63, -(2**63) - 1, 10**400, -(10**5000), 0.0,
    -0.0, 1.5, 1e308, -1e308, 5e-324, float("nan"), float("inf"), -float("inf"), "", "x", "nan",
    "true", " ", "a\0b", "a\nb", "\ud800", "x" * 10**6, "ä" * 5000, b"", b"x", [], [[]], [None],
    [True], [1], [2**63], [10**400], [1.5], [float("nan")], [float("inf")], ["x"], [""], ["a\0"],
    ["x" * 10**5], ["x", 1], [1, "x"], [1, 2.5], [{}], [{"a": 1}], [[1], [2]], ["x"] * 2000,
    [1] * 2000, (), ("x",), (1,), {}, {"a": 1}, {"a": {"b": []}}, set(), 1j, object(), print,
]  # fmt: skip


def check_value(setting, value) -> bool:
    """Whether a value is allowed; its problem, if any, is one short sentence with the name."""
    problem = problem_with(setting, value)
    assert "\n" not in problem and "Traceback" not in problem
    assert len(problem) <= LONGEST, (setting.name, problem)
    assert not problem or setting.name in problem
    return not problem


@pytest.mark.parametrize("group", [Config(), TrainConfig()], ids=["node", "training"])
def test_every_kind_of_value_for_every_setting(group):
    allowed = 0
    for setting in settings(group):
        assert check_value(setting, setting.default)
        for value in ODD:
            if check_value(setting, value):
                allowed += 1
                # What is allowed is of the kind of the default, and no bool for a number.
                kinds = {float: (int, float), list: (list, tuple)}
                kind = type(setting.default)
                assert isinstance(value, kinds.get(kind, kind)), (setting.name, value)
                assert kind is bool or not isinstance(value, bool), (setting.name, value)
        if isinstance(group, Config):
            for value in ODD:
                try:
                    from_flat({setting.name: value})
                except ConfigError as e:
                    assert setting.name in one_sentence(e)
    assert allowed > 100


@pytest.mark.parametrize("name", ["", "x", "map.pth", "x" * 10**5, "a\nb", "map", "map.path.x"])
def test_a_setting_that_is_none(name):
    with pytest.raises(ConfigError, match="unknown setting") as e:
        from_flat({name: 1})
    text = one_sentence(e.value)
    assert ("did you mean map.path?" in text) == (name in ("map.pth", "map.path.x")), text


def fuzz_yaml(path, count: int, seed: int = 0) -> dict[str, int]:
    """Read mutated files by every reader; anything but a ConfigError escapes.

    Returns:
        how many were read and how many refused.
    """
    rng, found = random.Random(seed), {"read": 0, "refused": 0}
    # fmt: off
    marks = [*string.printable, "&a ", "*a", "!!int ", "- ", ": ", "{", "}", "[", "]", "\n  ", "é",
             "<<: ", "? ", "| ", "> ", "%", "---\n", "2001-01-01", "0x", "1:2", ".inf"]
    # fmt: on
    wholes = [
        "/**:\n  ros__parameters:\n    mode: slam\n    matching: {top_k: 5}\n    map: {path: a}\n",
        "output: runs\nmodel: {size: base}\ndata:\n  sources:\n    - {folder: a, held_out: [b]}\n",
    ]
    for number in range(count):
        text = list(wholes[number % 2])
        for _ in range(rng.choice((1, 2, 5))):
            at = rng.randrange(len(text))
            text[at : at + rng.choice((0, 1, 1, 9))] = rng.choice(marks) * rng.choice((1, 1, 50))
        path.write_text("".join(text), encoding="utf-8")
        for read in (read_config, read_parameter_file, _change):
            try:
                read(path)
                found["read"] += 1
            except ConfigError as e:
                one_sentence(e, str(path))
                found["refused"] += 1
    return found


def _change(path):
    name, value = change_of(f"map.path={path.read_text(encoding='utf-8')}")
    return from_flat({name: value})


def test_mutated_files_end_in_one_sentence(tmp_path):
    found = fuzz_yaml(tmp_path / "x.yaml", 200)
    assert found["read"] and found["refused"]
