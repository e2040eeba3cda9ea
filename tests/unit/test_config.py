from __future__ import annotations

import re
from pathlib import Path

import pytest

from repmode_cl.config import load_config, parse_config, shipped_config_names, shipped_config_text
from repmode_cl.config.error_messages import all_keys
from repmode_cl.config.load import dump_config
from repmode_cl.config.strategy_schema import STRATEGY_NAMES
from repmode_cl.config.strict_yaml import dotted
from repmode_cl.errors import ConfigError, RepmodeError
from repmode_cl.structures import TWELVE_STRUCTURES

MINIMAL = "name: tiny\ntraining:\n  steps: 10\n"
DOCS = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"


def refusal(text: str = MINIMAL, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "my.yaml", overrides)
    return str(caught.value)


def test_a_minimal_file_takes_the_defaults_of_the_paper() -> None:
    config = parse_config(MINIMAL)
    assert config.name == "tiny"
    assert config.network.width == 32
    assert config.patch.size == (32, 128, 128)
    assert config.stream.base == TWELVE_STRUCTURES


@pytest.mark.parametrize("override", ["data.manifest=", "data.manifest= ", "data.manifest=# mine.csv"])
def test_an_override_without_a_value_is_refused(override: str) -> None:
    """Such as that of a variable of the shell which is not set: it would simulate cells in place of the manifest."""
    message = refusal(MINIMAL, override)
    assert message == f"override {override!r}: has no value: give one, or null for none"
    assert parse_config(MINIMAL, overrides=["data.manifest=null"]).data.manifest is None


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("output=~nobodyxx/foo", "output"),
        ("data.manifest=~nobodyxx/m.csv", "data.manifest"),
        ("strategies=[{name: '~nobodyxx/s.py:Mine'}]", "strategies.name"),
        (
            "strategies=[{name: avalanche:Naive, options: {model: '~nobodyxx/s.py:Net'}}]",
            "strategies.options.model",
        ),
        ("search={study: ~nobodyxx/study.yaml}", "search.study"),
    ],
)
def test_the_home_of_an_unknown_user_is_refused_by_its_key(
    override: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # Windows would guess a folder
    message = refusal(MINIMAL, override)
    assert message.startswith(f"{key}: ")
    assert "~nobodyxx" in message


@pytest.mark.parametrize("name", shipped_config_names())
def test_shipped_configurations_load_and_survive_being_written(name: str) -> None:
    config = load_config(name)
    assert config.name == name
    assert parse_config(dump_config(config)) == config
    assert load_config(f"{name}.yaml") == config
    # `repmode-cl config` lists it by this line.
    assert shipped_config_text(name).startswith("# ")


def test_what_the_shipped_configurations_promise() -> None:
    studies = {"twelve_structures", "all_strategies", "table3", "few_shot", "tuning", "tuning_all"}
    assert {"quickstart", "paper", *studies} <= set(shipped_config_names())
    quickstart = load_config("quickstart")
    assert len(quickstart.stream.base + (quickstart.stream.order or ())) == 4
    assert [one.name for one in quickstart.strategies] == [
        "experts_frozen", "warm_copy", "fine_tuning", "multi_net",
    ]  # fmt: skip
    loaded = {name: load_config(name) for name in studies}
    for name in ("twelve_structures", "table3", "few_shot"):
        assert len(loaded[name].seeds) >= 6  # fewer can show nothing: docs/measures.md
    # All studies but the searches, which must not see their images, compare in one setting; all strategies on networks
    # whose fused kernel is 3, as that of most of them.
    twelve = loaded["twelve_structures"]
    searches = {"tuning", "tuning_all"}
    small_kernels = twelve.network.model_copy(update={"experts": ("conv3", "conv1", "avg3")})
    for name in studies:
        assert loaded[name].patch == twelve.patch, name
        assert loaded[name].data == twelve.data or name in searches, name
        assert loaded[name].network == (small_kernels if "all" in name else twelve.network), name
        assert loaded[name].window == twelve.window
    for name in searches:
        assert loaded[name].data.simulate.seed != twelve.data.simulate.seed
    assert loaded["all_strategies"].stream == loaded["twelve_structures"].stream
    kinds = {one.name for name in ("twelve_structures", "all_strategies") for one in loaded[name].strategies}
    assert kinds == set(STRATEGY_NAMES)
    assert loaded["few_shot"].stream.images == (1, 2, 4, 8)
    for name, structures in (("real_isl", 3), ("real_mitotic", 10)):
        real = load_config(name)
        assert len(real.seeds) == 6
        assert len({*real.stream.base, *(real.stream.order or ())}) == structures
        assert {one.name for one in real.strategies} >= {
            "experts_frozen",
            "warm_copy",
            "multi_net",
            "fine_tuning",
        }
        assert real.data.preprocessing.voxel_size is None  # none is stated for these images
    paper = load_config("paper")
    for config in (twelve, paper):
        assert sorted(config.stream.base + (config.stream.order or ())) == sorted(TWELVE_STRUCTURES)
    assert (paper.network.width, paper.network.depth, paper.patch.size) == (32, 4, (32, 128, 128))
    assert (paper.training.batch_size, paper.training.epochs, paper.training.learning_rate) == (8, 1000, 1e-4)
    assert paper.training.validate_every_epochs == 20


def test_overrides() -> None:
    config = parse_config(
        MINIMAL + "strategies:\n- {name: multi_net}\n",
        "my.yaml",
        [
            "training.steps=50",
            "seeds=[0,1]",
            "training.learning_rate=1e-3",
            "strategies.0.kernel=5",
            "network.width=4",
        ],
    )
    assert config.training.steps == 50
    assert config.training.learning_rate == 1e-3
    assert config.seeds == (0, 1)
    assert config.strategies[0].kernel == 5
    assert config.network.width == 4
    switched = parse_config(MINIMAL, overrides=["training.steps=null", "training.epochs=3"])
    assert (switched.training.steps, switched.training.epochs) == (None, 3)
    assert parse_config(MINIMAL, overrides=["training.steps=1", "training.steps=2"]).training.steps == 2


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("training.stps=5", "unknown key (did you mean 'training.steps'?)"),
        ("learning_rate=1", "did you mean 'training.learning_rate'"),
        ("zzzz=1", "the top level has version, name"),
        ('training.steps="50"', 'found "50": a whole number is needed'),
        ("training.steps=true", "found true: a whole number is needed"),
        ("training.steps=2.5", "training.steps: found 2.5"),
        ("training.steps=0", "found 0: at least 1 is needed"),
        ("training.learning_rate=0", "more than 0"),
        ("training.learning_rate=.nan", "a finite number is needed"),
        ("training.learning_rate=1e999", "a finite number is needed"),
        ("training.schedule=cosin", "choose 'constant', 'one_cycle' or 'cosine'"),
        ("seeds=3", "a list, such as [a, b], is needed"),
        ("seeds=[1,1]", "none twice"),
        ("seeds=[18446744073709551616]", "at most 9223372036854775807 is allowed"),
        ("stream.order_seed=-1", "stream.order_seed: found -1: at least 0 is needed"),
        ("patch.size=[1,2]", "patch.size"),
        ("patch.size=[1,2,3,4]", "3 values are needed"),
        ("training=4", "a group of keys is needed"),
        ("training.steps.deep=3", "training.steps is 10 and has no keys below it"),
        ("network.experts=[conv7]", "choose conv1, conv3"),
        ("stream.base=[Foo]", "'Foo' cannot be used"),
        ("strategies.0.kernel=5", "give the whole list as strategies=[...]"),
        ("strategies=[{name: fine_tuning, expert: conv3}]", "expert is an option of experts_frozen"),
        ("strategies=[{name: experts_frozen, expert: 3}]", "strategies.0.expert: found 3"),
        ("strategies=[{name: ewc, label: EWC}, {name: ewc}]", "EWC and ewc would share a folder"),
        ("name=a b", "letters, digits"),
        ("name=../up", "letters, digits"),
        ("training.epochs=3", "give either epochs or steps"),
        ("training.steps", "write key=value"),
        ("=3", "write key=value"),
        ("a..b=3", "write key=value"),
        ("network={width: 3, width: 4}", "width is given twice"),
        ("network.width=[", "not valid YAML"),
    ],
)
def test_a_wrong_override_is_named_with_what_is_allowed(override: str, expected: str) -> None:
    message = refusal(MINIMAL, override)
    assert expected in message
    assert repr(override) in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "the file is empty"),
        ("- a\n", "found a list"),
        ("hello\n", "found a text"),
        ("name: a\nname: b\n", "my.yaml, line 2: name is given twice, first in line 1"),
        ("name: tiny\ntraining:\n  steps: 1\n  stepz: 2\n", "my.yaml, line 4: training.stepz: unknown key"),
        ("name: tiny\n", "my.yaml: training: is missing"),
        ("name: tiny\ntraining: {steps: 1}\n1: x\n", "the key 1 is no text"),
        ("name: tiny\ntraining: {steps: 1:30}\n", 'found "1:30": a whole number is needed'),
        ("name: tiny\ntraining: {steps: 010}\n", 'found "010": a whole number is needed'),
        ("name: !!python/name:os.system\n", "python/name:os.system is not supported"),
        ("name: !!binary aGVs\n", "is not supported"),
        ("a: &a {b: *a}\n", "an alias stands inside of what it stands for"),
        ("a: &a {b: 1}\nc: {<<: *a}\n", "merge keys"),
        ("name: [\n", "line 2, column 1: this is not valid YAML"),
        ("name: a\n---\nname: b\n", "not valid YAML"),
        ("name: \x00\n", "not valid YAML"),
        ("[" * 3000, "not valid YAML"),
    ],
)
def test_a_wrong_file_is_named_with_the_line(text: str, expected: str) -> None:
    assert expected in refusal(text)


def test_aliases_cannot_grow_without_end() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    assert "this is no configuration" in refusal("\n".join(lines))


def test_all_problems_are_listed_at_once() -> None:
    message = refusal("name: tiny\ntraining:\n  steps: 0\nnetwork:\n  widht: 8\n", "patch.flips=maybe")
    assert "my.yaml: 3 problems" in message
    assert "my.yaml, line 3: training.steps: found 0" in message
    assert "my.yaml, line 5: network.widht: unknown key (did you mean 'network.width'?)" in message
    assert "override 'patch.flips=maybe': patch.flips: found \"maybe\": true or false is needed" in message


def test_where_relative_paths_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "configs"
    folder.mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    file = folder / "my.yaml"
    file.write_text(
        MINIMAL
        + "data: {manifest: ../images/m.csv, cache: cache}\nstream: {order_file: order.txt}\noutput: out\n",
        encoding="utf-8",
    )
    config = load_config(file)
    assert config.data.manifest == str((tmp_path / "images" / "m.csv").resolve())
    assert config.stream.order_file == str((folder / "order.txt").resolve())
    assert (config.data.cache, config.output) == ("cache", "out")
    overridden = load_config(file, ["data.manifest=mine.csv", "output=~/runs"])
    assert overridden.data.manifest == str((tmp_path / "elsewhere" / "mine.csv").resolve())
    assert overridden.output == str(Path("~/runs").expanduser())


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'quickstart'"):
        load_config("quickstrt")
    with pytest.raises(ConfigError, match="is a folder"):
        load_config(tmp_path)
    bad = tmp_path / "bad.yaml"
    bad.write_bytes(b"name: \xff\xfe\n")
    with pytest.raises(ConfigError, match="not UTF-8 text at byte 6"):
        load_config(bad)
    bad.write_bytes(b"\xef\xbb\xbf" + MINIMAL.replace("\n", "\r\n").encode())
    assert load_config(bad).name == "tiny"
    with pytest.raises(RepmodeError, match="there are"):
        shipped_config_text("nothing")


def test_every_key_of_the_schema_stands_in_the_reference() -> None:
    page = set(re.findall(r"`([a-z_.*]+)`", DOCS.read_text(encoding="utf-8")))
    keys = {dotted(key) for key in all_keys()}
    # Groups that hold nothing but a list have a section under the name of their items.
    missing = {key for key in keys if key not in page and f"{key}.*" not in page}
    assert not missing
    stale = {key for key in page if key.split(".")[0] in keys and "." in key} - keys - {"strategies.*"}
    assert stale == set()
