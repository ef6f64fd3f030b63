"Settings: what is accepted, what is refused, and that every section of params.yaml is read by its stage."
from dataclasses import dataclass, field

import pytest

from world2vlm.config import ConfigError, from_dict, load_params, merged, repo_root, stage


@dataclass(frozen=True)
class Inner:
    rank: int = 8


@dataclass(frozen=True)
class Toy:
    steps: int
    lr: float = 1e-3
    lora: Inner = Inner()
    maybe: int | None = None
    names: tuple[str, ...] = ()
    weights: dict[str, float] = field(default_factory=dict)


@pytest.mark.parametrize("data, field, value", [
    (dict(steps=3), "lr", 1e-3),
    (dict(steps=3, lr=1), "lr", 1.0),
    (dict(steps=3, lora=dict(rank=4)), "lora", Inner(4)),
    (dict(steps=3, maybe=None), "maybe", None),
    (dict(steps=3, names=["a", "b"]), "names", ("a", "b")),
    (dict(steps=3, weights=dict(a=1)), "weights", dict(a=1.0)),
])
def test_accepts(data, field, value):
    found = getattr(from_dict(Toy, data, "toy"), field)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("data, message", [
    (dict(), "toy.steps: missing"),
    (dict(steps="3"), "toy.steps: '3' is str, int is wanted"),
    (dict(steps=True), "toy.steps: True is bool"),
    (dict(steps=3.0), "toy.steps: 3.0 is float"),
    (dict(steps=3, lr="1e-5"), "write 1.0e-5"),
    (dict(steps=3, lr=None), "toy.lr: None"),
    (dict(steps=3, lora=dict(r=4)), "toy.lora.r: unknown setting; Inner has rank"),
    (dict(steps=3, lora=4), "toy.lora: 4 is no mapping"),
    (dict(steps=3, maybe="x"), "toy.maybe: 'x'"),
    (dict(steps=3, names="ab"), "toy.names: 'ab' is str, a list is wanted"),
    (dict(steps=3, names=[1]), "toy.names[0]: 1 is int, str is wanted"),
    (dict(steps=3, weights=dict(a="b")), "toy.weights.a: 'b' is str"),
    ([1], "is no mapping"),
])
def test_refuses(data, message):
    with pytest.raises(ConfigError) as e: from_dict(Toy, data, "toy")
    assert message in str(e.value)


def test_layers():
    params = dict(sft=dict(steps=9, lora=dict(rank=1)), profiles=dict(small=dict(sft=dict(steps=2))), arms=dict(main={}, other=dict(sft=dict(lora=dict(rank=2)))))
    assert stage(Toy, "sft", "small", "main", params) == Toy(2, lora=Inner(1))
    assert stage(Toy, "sft", "small", "other", params) == Toy(2, lora=Inner(2))
    assert params["sft"] == dict(steps=9, lora=dict(rank=1))
    with pytest.raises(ConfigError, match="profiles.large: not in params.yaml; there are small"): stage(Toy, "sft", "large", "main", params)
    with pytest.raises(ConfigError, match="grpo: no such section"): stage(Toy, "grpo", "small", "main", params)


def test_merged_leaves_its_arguments_alone():
    a = dict(x=dict(y=1))
    assert merged(a, dict(x=dict(z=2))) == dict(x=dict(y=1, z=2)) and a == dict(x=dict(y=1))


@pytest.mark.parametrize("text, message", [
    ("sft: {}\nprofiles: {mini: {stf: {}}}\n", "profiles.mini.stf: no such section; there are sft"),
    ("sft: {}\narms: {main: {teacher: simulator, stf: {}}}\n", "arms.main.stf: no such section"),
])
def test_a_mistyped_section_is_refused(tmp_path, text, message):
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ConfigError) as e: load_params(tmp_path / "params.yaml")
    assert message in str(e.value)


def test_root_is_found_from_below(tmp_path, monkeypatch):
    (tmp_path / "params.yaml").write_text("{}")
    (tmp_path / "a/b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a/b")
    assert repo_root() == tmp_path.resolve()
