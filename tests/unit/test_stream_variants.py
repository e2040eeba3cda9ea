"""Streams of a configuration: orders by list, seed and difficulty, a base of k structures, and what they are called."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from repmode_cl.config import Config, StreamConfig, TrainingConfig, load_config, parse_config
from repmode_cl.config.load import dump_config
from repmode_cl.data.pipeline import available_structures
from repmode_cl.errors import ConfigError, RepmodeError, UnknownStructureError
from repmode_cl.results import ResultsTable
from repmode_cl.scenarios import (
    StreamVariant,
    base_structures,
    experience_names,
    stream_variants,
    task_labels,
)
from repmode_cl.scenarios.difficulty import read_difficulty
from repmode_cl.structures import TWELVE_STRUCTURES

KNOWN = ("dna", "cell_membrane", "nucleolus", "mitochondria", "microtubule")


def variants(**keys: Any) -> dict[str, StreamVariant]:
    return stream_variants(StreamConfig(**keys), KNOWN)


def orders(**keys: Any) -> dict[str, list[str]]:
    """Return each stream's structures, a joint experience's joined by +."""
    return {name: ["+".join(group) for group in made.experiences] for name, made in variants(**keys).items()}


def table(folder: Path, text: str) -> str:
    path = folder / "hard.csv"
    path.write_text(text, encoding="utf-8")
    return str(path)


# -- names and combinations -------------------------------------------------------------------------------------


def test_one_stream_has_no_name() -> None:
    assert orders(base=("dna",), order=("nucleolus", "microtubule")) == {
        "": ["dna", "nucleolus", "microtubule"]
    }
    assert variants(base=KNOWN[:4], images=3) == {"": StreamVariant((KNOWN[:4], ("microtubule",)), 3)}


def test_each_seed_of_a_list_is_a_stream_and_the_same_as_by_itself() -> None:
    several = variants(base=("dna",), order_seeds=(0, 1, 7))
    assert list(several) == ["order-0", "order-1", "order-7"]
    for seed in (0, 1, 7):
        assert several[f"order-{seed}"] == variants(base=("dna",), order_seed=seed)[""]
    assert len({variant.experiences for variant in several.values()}) == 3
    # A list of one has the name that it has among others, so that seeds can be added to a run.
    assert variants(base=("dna",), order_seeds=(7,)) == {"order-7": several["order-7"]}
    # Runs of other machines and years are merged by these names.
    assert orders(base=("dna",), order_seeds=(1,))["order-1"] == [
        "dna", "microtubule", "cell_membrane", "mitochondria", "nucleolus",
    ]  # fmt: skip


def test_lists_combine() -> None:
    found = variants(base=("dna",), order_seeds=(3, 4), arrange=("given", "easiest_first"), images=(2, None))
    assert list(found) == [
        "order-3-images-2", "order-3-images-all", "order-4-images-2", "order-4-images-all",
        "easiest-first-images-2", "easiest-first-images-all",
    ]  # fmt: skip
    assert [variant.images for variant in found.values()] == [2, None] * 3
    assert found["order-3-images-2"].experiences == found["order-3-images-all"].experiences
    assert list(variants(arrange=("given", "hardest_first"))) == ["given", "hardest-first"]


# -- a base of k ------------------------------------------------------------------------------------------------


def test_a_base_may_be_the_first_k_of_the_order() -> None:
    assert orders(base=2) == {"": ["dna+cell_membrane", "nucleolus", "mitochondria", "microtubule"]}
    assert orders(base=3, order=KNOWN[:3]) == {"": ["dna+cell_membrane+nucleolus"]}
    with pytest.raises(ConfigError, match=r"the first 4 structures of the order, which has 3: dna, cell"):
        variants(base=4, order=KNOWN[:3])


def test_a_base_of_k_is_taken_after_shuffling_and_has_a_separate_order() -> None:
    shuffled = variants(order_seeds=tuple(range(12)))
    based = variants(base=2, order_seeds=tuple(range(12)))
    for name, variant in based.items():
        order = [group[0] for group in shuffled[name].experiences]
        assert set(variant.experiences[0]) == set(order[:2])
        # Bases of the same structures are one base, which strategies and streams share.
        assert list(variant.experiences[0]) == sorted(order[:2], key=KNOWN.index)
        assert [group[0] for group in variant.experiences[1:]] == order[2:]
    assert len({variant.experiences[0] for variant in based.values()}) > 1


def test_the_base_of_a_model() -> None:
    for keys in ({"base": ("dna", "nucleolus"), "order_seeds": (1, 2)}, {"base": ("dna",), "order": ()}):
        assert base_structures(StreamConfig(**keys), KNOWN) == keys["base"]
    assert base_structures(StreamConfig(base=2, images=(1, 2)), KNOWN) == KNOWN[:2]
    with pytest.raises(ConfigError, match=r"stream.base is 2, and the first 2 .* differ.*order-"):
        base_structures(StreamConfig(base=2, order_seeds=(0, 1, 2, 3)), KNOWN)
    with pytest.raises(UnknownStructureError, match="did you mean 'dna'"):
        base_structures(StreamConfig(base=("dma",)), KNOWN)
    with pytest.raises(ConfigError, match="describes 2 orders"):
        experience_names(StreamConfig(order_seeds=(0, 1)), KNOWN)
    assert experience_names(StreamConfig(base=4, images=(1, 2)), KNOWN) == (KNOWN[:4], KNOWN[4:])


# -- difficulty -------------------------------------------------------------------------------------------------


def test_the_shipped_difficulty_knows_the_twelve() -> None:
    stream = StreamConfig(arrange=("easiest_first", "hardest_first"))
    found = stream_variants(stream, TWELVE_STRUCTURES)
    easiest, hardest = (list(variant.experiences) for variant in found.values())
    assert sorted(easiest) == sorted((name,) for name in TWELVE_STRUCTURES)
    assert easiest[0] == ("dna",)
    assert easiest == hardest[::-1]


@pytest.mark.parametrize(
    ("separator", "first"), [(",", ""), (";", ""), ("\t", ""), (";", "sep=;\n"), ("|", '"sep=|"\n')]
)
def test_structures_are_sorted_by_a_table_of_ones_own(tmp_path: Path, separator: str, first: str) -> None:
    rows = "r2, structure,fields\n.1,dna,6\n-2,nucleolus,6\n\n9e-1,microtubule,6\n.1,cell_membrane,6\n"
    path = table(tmp_path, f"{first}# mine, R2; of six\n{rows.replace(',', separator)}")
    names = ("cell_membrane", "nucleolus", "dna", "microtubule")
    kwargs = {"order": names, "difficulty": path}
    # Equals stay in the order given, in either direction.
    assert orders(arrange="easiest_first", **kwargs)[""] == [
        "microtubule",
        "cell_membrane",
        "dna",
        "nucleolus",
    ]
    assert orders(arrange="hardest_first", **kwargs)[""] == [
        "nucleolus",
        "cell_membrane",
        "dna",
        "microtubule",
    ]
    assert orders(arrange="easiest_first", base=2, **kwargs)[""][0] == "cell_membrane+microtubule"
    # A base that is named is not sorted, and needs no difficulty.
    assert orders(arrange="hardest_first", base=("mitochondria",), **kwargs)[""][:2] == [
        "mitochondria", "nucleolus",
    ]  # fmt: skip


def test_what_comes_again_waits_for_all_the_others(tmp_path: Path) -> None:
    path = table(tmp_path, "structure,r2\ndna,0.5\nnucleolus,0.9\nmicrotubule,0.1\n")
    order = ("dna", "dna", "microtubule", "nucleolus", "microtubule")
    found = orders(base=("cell_membrane",), order=order, arrange="easiest_first", difficulty=path)[""]
    assert found[1:] == ["nucleolus", "dna", "microtubule", "dna", "microtubule"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("structure,r2\ndna,0.5\n", "no r2 of nucleolus, by which the stream is sorted; it has dna"),
        ("structure,R2\ndna,0.5\n", "no column r2; .* names structure, R2"),
        ("", "no column structure and r2; .* names nothing"),
        ("structure,r2\ndna,0.5\n\nnucleolus,\n", "line 4: the r2 of nucleolus is ''"),
        ("structure,r2\ndna,nan\n", "line 2: the r2 of dna is 'nan': a finite number"),
        ("structure,r2\ndna\n", "line 2: the r2 of dna is ''"),
        ("structure,r2\ndna,1\ndna,2\n", "line 3: dna stands twice"),
    ],
)
def test_a_wrong_table_is_named_with_the_line(tmp_path: Path, text: str, expected: str) -> None:
    path = table(tmp_path, text)
    with pytest.raises(ConfigError, match=expected) as caught:
        variants(order=("dna", "nucleolus"), arrange="easiest_first", difficulty=path)
    assert path in str(caught.value)


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"stream.difficulty .*absent\.csv cannot be read"):
        variants(arrange="easiest_first", difficulty=str(tmp_path / "absent.csv"))
    with pytest.raises(ConfigError, match=r"shipped difficulty.csv: no r2 of lysosome"):
        stream_variants(StreamConfig(arrange="hardest_first"), ("dna", "lysosome"))


# -- a structure comes again ------------------------------------------------------------------------------------


def test_a_structure_may_come_again_but_not_one_of_the_base(tmp_path: Path) -> None:
    again = ("nucleolus", "microtubule", "nucleolus")
    found = variants(base=("dna",), order=again)[""]
    assert found.experiences == (("dna",), ("nucleolus",), ("microtubule",), ("nucleolus",))
    assert task_labels(found.experiences) == {"dna": 0, "nucleolus": 1, "microtubule": 2}
    with pytest.raises(ValidationError, match=r"dna named in base and order.*cannot come again"):
        StreamConfig(base=("dna",), order=("nucleolus", "dna"))
    with pytest.raises(ValidationError, match="base: dna named twice"):
        StreamConfig(base=("dna", "dna"))
    # Without a base, the first of the order is what the network begins with.
    with pytest.raises(
        ConfigError, match="nucleolus named twice, and the first time in the first experience"
    ):
        variants(order=again)
    with pytest.raises(ConfigError, match="nucleolus, nucleolus, where a structure comes twice"):
        variants(base=2, order=("nucleolus", "nucleolus", "dna"))
    path = tmp_path / "order.txt"
    path.write_text("dna\nnucleolus\nnucleolus\ndna\n", encoding="utf-8")
    assert orders(base=("microtubule",), order_file=str(path))[""][-1] == "dna"
    with pytest.raises(ConfigError, match=r"dna named twice.*let it come after the base"):
        variants(order_file=str(path))


# -- configuration ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("base: 0", "stream.base: found 0: "),
        ("base: true", "stream.base: found true: "),
        ("base: dna", 'stream.base: found "dna": a list, such as [a, b],'),
        ("order_seeds: []", "stream.order_seeds: the list is empty"),
        ("order_seeds: [1, 2, 1]", "stream.order_seeds: 1 named twice"),
        ("order_seeds: [-1]", "stream.order_seeds.0: found -1: at least 0"),
        ("order_seeds: [1]\n  order_seed: 1", "give either order_seed or order_seeds"),
        ("arrange: easiest", "stream.arrange: found \"easiest\": choose 'given', 'easiest_first' or"),
        (
            "arrange: [given, hardest]",
            "stream.arrange.1: found \"hardest\": choose 'given', 'easiest_first' or",
        ),
        ("arrange: []", "stream.arrange: the list is empty"),
        ("arrange: hardest_first\n  order_seed: 3", "give arrange: [given, hardest_first]"),
        ("order_seeds: [3]\n  arrange: [hardest_first]", "order_seeds shuffles what arrange sorts"),
        ("difficulty: a.csv", "difficulty is of use only with arrange"),
        ("images: 0", "stream.images: found 0: at least 1 is needed"),
        ("images: [2, 0]", "stream.images.1: found 0: at least 1 is needed"),
        ("images: [2, 4, 2]", "stream.images: 2 named twice"),
        ("images: 2.5", "stream.images: found 2.5: "),
        ("arrnge: given", "did you mean 'stream.arrange'"),
    ],
)
def test_a_wrong_key_is_named_with_what_is_allowed(text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(f"name: t\ntraining: {{steps: 1}}\nstream:\n  {text}\n", "my.yaml")
    assert expected in str(caught.value)


def test_streams_survive_being_written(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(
        "name: t\ntraining: {steps: 1}\nstream:\n  base: 2\n  order_seeds: [0, 5]\n"
        "  arrange: [given, easiest_first]\n  difficulty: hard.csv\n  images: [1, null]\n",
        encoding="utf-8",
    )
    config = load_config(path)
    assert config.stream.difficulty == str((tmp_path / "hard.csv").resolve())
    assert config.stream.images == (1, None)
    assert parse_config(dump_config(config)) == config


def test_what_can_be_simulated_is_known() -> None:
    config = Config(name="t", training=TrainingConfig(steps=1), stream=StreamConfig(base=3))
    assert available_structures(config) == TWELVE_STRUCTURES
    unknown = config.model_copy(update={"stream": StreamConfig(base=1, order=("dna", "nucleolis"))})
    with pytest.raises(RepmodeError, match=r"the simulator knows .*did you mean 'nucleolus'"):
        available_structures(unknown)


def test_the_examples_of_the_documentation() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "streams.md").read_text(encoding="utf-8")
    examples = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    found = [
        list(
            stream_variants(
                parse_config(f"name: t\ntraining: {{steps: 1}}\n{text}").stream, TWELVE_STRUCTURES
            )
        )
        for text in examples
    ]
    assert found == [
        [""],
        ["order-0", "order-1", "order-2", "easiest-first", "hardest-first"],
        [""],
        ["images-1", "images-2", "images-4", "images-8", "images-all"],
    ]


def test_the_documentation_makes_a_table_of_difficulty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "streams.md").read_text(encoding="utf-8")
    [example] = [
        code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if '"structure,r2"' in code
    ]
    results = ResultsTable()
    for strategy, seed, step, structure, value in (
        ("multi_net_k3", 0, 0, "dna", 0.1),
        ("multi_net_k3", 0, 1, "dna", 0.25),
        ("multi_net_k3", 0, 1, "nucleolus", 0.75),
        ("multi_net_k3", 1, 1, "dna", 0.75),
        ("multi_net_k3", 1, 1, "nucleolus", 0.25),
        ("experts_frozen", 0, 1, "dna", 0.9),
    ):
        results.append(strategy, seed, step, structure, "r2", value)
    monkeypatch.chdir(tmp_path)
    Path("runs/reference").mkdir(parents=True)
    results.write("runs/reference/results.csv")
    exec(example, {})
    written = capsys.readouterr().out
    assert written == "structure,r2\ndna,0.5\nnucleolus,0.5\n"
    Path("mine.csv").write_text(written)
    assert read_difficulty("mine.csv", ("dna", "nucleolus")) == {"dna": 0.5, "nucleolus": 0.5}
