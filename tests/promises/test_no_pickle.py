"""Nothing in the package reads a pickle: not by itself, and not through a library that would."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(
    path
    for folder in ("repmode_cl", "strategies", "scenarios", "configs")
    for path in (ROOT / folder).rglob("*.py")
)

MODULES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}
# What unpickles or runs text, by its full name, and by its last one wherever it is from.
CALLS = {
    "torch.load",
    "torch.jit.load",
    "torch.package",
    "torch.hub",
    "np.fromregex",
    "pd.read_pickle",
    "eval",
    "exec",
}
ATTRIBUTES = {
    "read_pickle",
    "maybe_load_checkpoint",
    "load_state_dict_from_url",
    "unpickle",
}


def findings(source: str) -> list[str]:
    """Return what in a program could load a pickle, each with its line."""
    found = []
    tree = ast.parse(source)
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
            names |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        else:
            continue
        for module in modules:
            last = module.split(".")[-1]
            if (
                module.split(".")[0] in MODULES
                or last in ATTRIBUTES
                or module in (*CALLS, "torch.serialization")
            ):
                found.append(f"line {node.lineno}: imports {module}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value in MODULES:
            found.append(f"line {node.lineno}: names {node.value}")
        if isinstance(node, ast.Attribute) and (
            node.attr in ATTRIBUTES or _full(node, names) in CALLS or node.attr in MODULES
        ):
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
        if isinstance(node, ast.Name) and names.get(node.id, node.id) in CALLS:
            found.append(f"line {node.lineno}: {node.id}")
        if isinstance(node, ast.Call):
            called = _full(node.func, names)
            allows = [k for k in node.keywords if k.arg == "allow_pickle"]
            if any(not (isinstance(k.value, ast.Constant) and k.value.value is False) for k in allows):
                found.append(f"line {node.lineno}: allows pickles")
            if called in ("np.load", "numpy.load") and not allows:
                found.append(f"line {node.lineno}: does not forbid pickles")
            unsafe = called in ("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load")
            if unsafe and "Safe" not in ast.unparse(node):
                found.append(f"line {node.lineno}: reads YAML that may hold objects")
    return sorted(set(found))


def _full(node: ast.expr, names: dict[str, str]) -> str:
    """Return a dotted name with the module's own name in front, whatever it was imported as."""
    if isinstance(node, ast.Name):
        return {"numpy": "np", "pandas": "pd"}.get(names.get(node.id, node.id), names.get(node.id, node.id))
    return f"{_full(node.value, names)}.{node.attr}" if isinstance(node, ast.Attribute) else ""


#: The one exemption: the importer of the authors' checkpoints, which reads tensors and nothing else.
IMPORTER = "repmode_cl/store/authors_checkpoint.py"


def test_no_file_loads_a_pickle() -> None:
    assert len(FILES) > 100
    found = {path.relative_to(ROOT).as_posix(): findings(path.read_text(encoding="utf-8")) for path in FILES}
    [importer] = found.pop(IMPORTER)
    assert importer.endswith(": torch.load")
    assert not {path: what for path, what in found.items() if what}


def test_the_importer_reads_tensors_only() -> None:
    tree = ast.parse((ROOT / IMPORTER).read_text(encoding="utf-8"))
    [call] = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == "torch.load"]
    keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    assert keywords["weights_only"] == "True"
    assert keywords["mmap"] == "True"
    assert "torch.serialization.safe_globals([argparse.Namespace])" in (ROOT / IMPORTER).read_text("utf-8")


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import _pickle as p",
        "from pickle import loads",
        "import dill as safe",
        "def f():\n    from cloudpickle import load",
        "import torch\ntorch.load('x')",
        "import torch as t\nt.load('x', weights_only=True)",
        "from torch import load",
        "from torch import load as read\nread('x')",
        "import torch\nread = torch.load",
        "import torch.serialization",
        "from torch.serialization import load",
        "from torch import serialization",
        "import torch\ntorch.serialization.pickle.load(f)",
        "import torch\ntorch.jit.load('x')",
        "import importlib\nimportlib.import_module('pickle')",
        "__import__('dill')",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import numpy as np\nnp.load('x')",
        "import numpy\nnumpy.load('x')",
        "import pandas as pd\npd.read_pickle('x')",
        "from avalanche.training.checkpoint import maybe_load_checkpoint",
        "import yaml\nyaml.load(f, Loader=yaml.Loader)",
        "import yaml\nyaml.unsafe_load(f)",
        "eval('1')",
    ],
)
def test_each_way_to_load_one_is_found(source: str) -> None:
    """A test that walks the source is worth as much as what it would find."""
    assert findings(source)


def test_what_loads_none_is_not_found() -> None:
    source = (
        "import numpy as np, yaml, json, torch\nnp.load('x', allow_pickle=False)\nyaml.safe_load('x')\n"
        "json.load(f)\nnetwork.load_state_dict({})\nnetwork.eval()\n"
    )
    assert not findings(source)
