"""No code of the package reads a file in a way that can run what the file names."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    path
    for folder in ("hashvpr_ros", "launch", "examples", "scripts")
    for path in (ROOT / folder).rglob("*.py")
)
MODULES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib",
           "jsonpickle"}  # fmt: skip
# PyYAML's loaders that make any Python object, and those that take a loader.
YAML = {"full_load", "full_load_all", "unsafe_load", "unsafe_load_all", "Loader", "FullLoader",
        "UnsafeLoader", "CLoader"}  # fmt: skip
SAFE_LOADERS = {"yaml.SafeLoader", "yaml.CSafeLoader"}
# The faster of the two, where PyYAML was built with it.
FASTER = "getattr(yaml, 'CSafeLoader', yaml.SafeLoader)"


def offences(text):
    """Lines that can run what a file names, with the reason."""
    tree = ast.parse(text)
    safe = SAFE_LOADERS | {
        ast.unparse(node.target)
        for node in ast.walk(tree)
        if isinstance(node, ast.AnnAssign) and node.value and ast.unparse(node.value) == FASTER
    }
    safe |= {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and {ast.unparse(b) for b in node.bases} <= safe
        if node.bases
    }
    return [
        (node.lineno, reason) for node in ast.walk(tree) for reason in _offences_of(node, safe)
    ]


def _offences_of(node, safe_loaders):
    names = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        names = [node.module or "", *(alias.name for alias in node.names)]
        if node.module == "yaml":
            yield from YAML.intersection(names)
    yield from (name for name in names if name.split(".")[0] in MODULES)
    if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "yaml" and node.attr in YAML:
        yield f"yaml.{node.attr}"
    if not isinstance(node, ast.Call):
        return
    called = ast.unparse(node.func)
    keywords = {k.arg: k.value for k in node.keywords}
    if "allow_pickle" in keywords and not _is(keywords["allow_pickle"], False):
        yield "allow_pickle"
    if called in ("eval", "exec", "__import__"):
        yield called
    if called.endswith("torch.load") and not _is(keywords.get("weights_only"), True):
        yield "torch.load without weights_only=True"
    if called in ("yaml.load", "yaml.load_all"):
        loaders = [*node.args[1:], *(v for k, v in keywords.items() if k == "Loader")]
        if [
            ast.unparse(loader) for loader in loaders if ast.unparse(loader) in safe_loaders
        ] == []:
            yield f"{called} without a safe loader"


def _is(node, value):
    return isinstance(node, ast.Constant) and node.value is value


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_source_file(path):
    assert offences(path.read_text()) == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "import pickle as p",
        "from pickle import loads",
        "def f():\n    import dill",
        "np.load(f, allow_pickle=True)",
        "np.load(f, allow_pickle=flag)",
        "yaml.load(f)",
        "yaml.load(f, Loader=yaml.Loader)",
        "class Mine(yaml.FullLoader): pass\nyaml.load(f, Loader=Mine)",
        "from yaml import unsafe_load",
        "yaml.full_load(f)",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "eval(text)",
    ],
)
def test_the_test_sees_it(text):
    assert offences(text)


def test_what_is_safe():
    assert not offences("np.load(f, allow_pickle=False)\nyaml.safe_load(f)\nmodel.eval()")
    assert not offences("torch.load(f, weights_only=True)")
    assert not offences("yaml.load(f, Loader=yaml.SafeLoader)")
    assert not offences("class Mine(yaml.SafeLoader): pass\nyaml.load(f, Loader=Mine)")
    assert len(SOURCES) > 150
