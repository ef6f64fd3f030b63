"Settings: what is accepted, what is refused, and how the messages help."
from dataclasses import dataclass, field
from typing import Literal

import pytest
from hypothesis import given, settings, strategies as st

from world2vlm.core.config import ConfigError, _from_dict, load_params, _merged, _read_yaml, _number_hint, repo_root, load_settings

settings.register_profile("shared machine", deadline=None, derandomize=True)
settings.load_profile("shared machine")


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
    read = getattr(_from_dict(Toy, data, "toy"), field)
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize("data, message", [
    (dict(), "toy.steps: missing"),
    (dict(steps="3"), "toy.steps: expected int, got '3' (str)"),
    (dict(steps=True), "toy.steps: expected int, got True (bool)"),
    (dict(steps=3.0), "toy.steps: expected int, got 3.0 (float); write 3"),
    (dict(steps=3, lr="1e-5"), "write 1.0e-5"),
    (dict(steps=3, lr=None), "toy.lr: expected float, got None"),
    (dict(steps=3, lora=dict(r=4)), "toy.lora.r: unknown setting; Inner has rank"),
    (dict(steps=3, lora=4), "toy.lora: expected a mapping of settings, got 4"),
    (dict(steps=3, maybe="x"), "toy.maybe: expected int, got 'x'"),
    (dict(steps=3, names="ab"), "toy.names: expected a list, got 'ab' (str)"),
    (dict(steps=3, names=[1]), "toy.names[0]: expected str, got 1 (int)"),
    (dict(steps=3, weights=dict(a="b")), "toy.weights.a: expected float, got 'b' (str)"),
    ([1], "toy: expected a mapping of settings, got [1] (list)"),
])
def test_refuses(data, message):
    with pytest.raises(ConfigError) as e: _from_dict(Toy, data, "toy")
    assert message in str(e.value)


def test_layers():
    params = dict(sft=dict(steps=9, lora=dict(rank=1)), profiles=dict(small=dict(sft=dict(steps=2))), arms=dict(main={}, other=dict(sft=dict(lora=dict(rank=2)))))
    assert load_settings(Toy, "sft", "small", "main", params) == Toy(2, lora=Inner(1))
    assert load_settings(Toy, "sft", "small", "other", params) == Toy(2, lora=Inner(2))
    assert params["sft"] == dict(steps=9, lora=dict(rank=1))
    with pytest.raises(ConfigError, match="profiles.large: not in params.yaml; there are small"): load_settings(Toy, "sft", "large", "main", params)
    with pytest.raises(ConfigError, match="grpo: no such section"): load_settings(Toy, "grpo", "small", "main", params)


def test_merged_leaves_its_arguments_alone():
    a = dict(x=dict(y=1))
    assert _merged(a, dict(x=dict(z=2))) == dict(x=dict(y=1, z=2)) and a == dict(x=dict(y=1))


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


@pytest.mark.parametrize("written, expected", [("1e-5", 1e-5), ("2E6", 2e6), ("1.5e3", 1.5e3), ("-3e-1", -0.3), ("+1e1", 10.0)])
def test_the_remedy_for_a_number_is_a_number(written, expected):
    assert isinstance(_read_yaml(written, "x"), str)
    assert _read_yaml(_number_hint(written).split("write ")[1], "x") == expected


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_can_be_written(value):
    read = _read_yaml(repr(value), "x")
    again = read if isinstance(read, float) else _read_yaml(_number_hint(read).split("write ")[1], "x")
    assert again == value


@dataclass(frozen=True)
class Careful:
    mode: Literal["lora", "full"] = "lora"
    rate: float = 1.0
    name: str = "a"

    def __post_init__(self):
        if self.rate < 0: raise ValueError(f"rate must be at least 0, got {self.rate}")


@pytest.mark.parametrize("data, message", [
    (dict(mode="lorra"), "toy.mode: expected one of lora, full, got 'lorra' (str); did you mean lora?"),
    (dict(rat=1), "toy.rat: unknown setting; Careful has mode, rate, name; did you mean rate?"),
    (dict(name=False), "toy.name: expected str, got False (bool); put it in quotes"),
    (dict(rate=-1), "toy: rate must be at least 0, got -1.0"),
    (None, "toy: expected a mapping of settings, got None"),
])
def test_messages_help(data, message):
    with pytest.raises(ConfigError) as e: _from_dict(Careful, data, "toy")
    assert message in str(e.value)


@pytest.mark.parametrize("profile, arm, message", [
    ("mini", "main", "params.yaml: profiles.mini.toy.rate: expected float, got 'x'"),  # the arm would hide it
    ("small", "main", None),
    ("small", "", None),
    ("small", "typo", "params.yaml: arms.typo.toy.rte: unknown setting"),
    ("smal", None, "profiles.smal: not in params.yaml; there are mini, small; did you mean small?"),
])
def test_a_mistake_is_reported_at_its_place(profile, arm, message):
    params = dict(toy=None, profiles=dict(mini=dict(toy=dict(rate="x")), small=None), arms=dict(main=dict(toy=dict(rate=2)), typo=dict(toy=dict(rte=2))))
    if message is None:
        assert load_settings(Careful, "toy", profile, arm, params).rate == (2.0 if arm else 1.0)
        return
    with pytest.raises(ConfigError) as e: load_settings(Careful, "toy", profile, arm, params)
    assert message in str(e.value)


@pytest.mark.parametrize("text, message", [
    ("sft: {lr: 1, lr: 2}", "lr is twice in the mapping of line 1"),
    ("sft: [1", "no valid YAML"),
    ("- 1", "expected a mapping of sections"),
    ("", "expected a mapping of sections"),
    ("sft: {}\nprofiles: {mini: 3}", "profiles.mini: expected a mapping of sections, got 3"),
])
def test_a_broken_file_is_refused(tmp_path, text, message):
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ConfigError) as e: load_params(tmp_path / "params.yaml")
    assert message in str(e.value) and "params.yaml" in str(e.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no such file"): load_params(tmp_path / "params.yaml")


def test_yaml_anchors_may_be_overridden():
    assert _read_yaml("a: &a {x: 1, y: 2}\nb: &b {<<: *a, x: 3}\nc: {<<: *b, y: 4}", "x")["c"] == dict(x=3, y=4)
