"Ranges and known names of all settings: refused from params.yaml and from Python, with the range, the names and the nearest one."
from copy import deepcopy
from dataclasses import fields, replace
from importlib import import_module
from typing import Annotated, Literal, get_args, get_origin

import pytest
from hypothesis import given, settings, strategies as st

from world2vlm.core.actions import Ranges
from world2vlm.core.config import ConfigError, Settings, _annotations, load_params, load_settings
from world2vlm.dataset.real_turns import RealTurns
from world2vlm.dataset.synthesis import HeldOut, Imagine, Scenes, Supervise
from world2vlm.evaluation.annotation_errors import AnnotationErrors, _Errors
from world2vlm.evaluation.benchmarks.rooms import RoomsBenchmark
from world2vlm.evaluation.held_out import Evaluate
from world2vlm.evaluation.label_audit import audit_labels, LabelAudit
from world2vlm.evaluation.teacher_quality import TeacherQuality
from world2vlm.evaluation.view_search import ViewSearch
from world2vlm.report.comparison import Comparison
from world2vlm.students.grpo import GRPO
from world2vlm.students.models import MiniConfig, StudentConfig
from world2vlm.students.pretraining import Base, Phase
from world2vlm.students.sft import SFT
from world2vlm.students.training import Training
from world2vlm.scenes.annotate import Annotate
from world2vlm.tasks.hallucinations import HallucinationCheck
from world2vlm.tasks.rules import Rules
from world2vlm.teachers.base import TEACHERS
from world2vlm.teachers.filters import Filter
from world2vlm.teachers.svc.training import SVCTraining

SECTIONS = dict(scenes=Scenes, annotate=Annotate, imagine=Imagine, supervise=Supervise, real_turns=RealTurns, held_out=HeldOut, label_audit=LabelAudit, teacher_quality=TeacherQuality,
                student=StudentConfig, base=Base, svc=SVCTraining, sft=SFT, grpo=GRPO, evaluate=Evaluate, rooms_benchmark=RoomsBenchmark, comparison=Comparison, benchmarks=Comparison)
CLASSES = [*dict.fromkeys(SECTIONS.values()), Ranges, Filter, HallucinationCheck, Rules, ViewSearch, Training, MiniConfig, Phase, AnnotationErrors, _Errors]


def changed(params: dict, path: str, value) -> dict:
    "`params` with another value at a dotted path."
    params = deepcopy(params)
    *parents, last = path.split("/")
    place = params
    for key in parents: place = place.setdefault(key, {})
    place[last] = value
    return params


def unbounded(kind) -> bool:
    "Whether a number of this type has no range."
    if get_origin(kind) is Annotated: return len(kind.__metadata__) == 0
    if get_origin(kind) is Literal: return False
    if get_args(kind): return any(unbounded(part) for part in get_args(kind))
    return kind in (int, float)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_number_has_a_range_settings(cls):
    assert issubclass(cls, Settings)
    assert [f.name for f in fields(cls) if f.name != "options" and unbounded(_annotations(cls)[f.name])] == []


@pytest.mark.parametrize("section, cls", SECTIONS.items())
@pytest.mark.parametrize("profile", ["smoke", "mini", "midi", "gpu", "paper", "rehearsal"])
def test_all_profiles_and_arms_pass_settings(section, cls, profile):
    params = load_params()
    for arm in params["arms"]: assert isinstance(load_settings(cls, section, profile, arm, params), cls)


@pytest.mark.parametrize("profile", ["smoke", "mini", "midi", "gpu", "paper", "rehearsal"])
def test_both_stages_agree_on_the_questions_of_grpo_settings(profile):
    for arm in load_params()["arms"]:
        assert load_settings(SFT, "sft", profile, arm).grpo_per_task == load_settings(GRPO, "grpo", profile, arm).grpo_per_task


# Case 25 and its kind: path in params.yaml, wrong value, what the message says after the path.
WRONG = [
    ("imagine/filters/scv", {}, f"expected one of {', '.join(TEACHERS)}, module:Class, got 'scv' (str); did you mean svc?"),
    ("imagine/options/svcc", {"bf16": True}, f"expected one of {', '.join(TEACHERS)}, module:Class, got 'svcc' (str); did you mean svc?"),
    ("teacher_quality/options/simulater", {}, "did you mean simulator?"),
    ("comparison/options/svcc", {}, "did you mean svc?"),
    ("imagine/presets/singel", 3, "expected one of single, forward_turn, turn_forward, shift_forward_turn, got 'singel' (str); did you mean single?"),
    ("imagine/presets/single", -1, "expected a number >= 0, got -1"),
    ("imagine/move_step", 1e-9, "expected a number >= 0.01, got 1e-09"),
    ("imagine/turn_step", 0, "expected a number >= 0.1, got 0.0"),
    ("imagine/ranges/move", [0.2, 1.5, 1e-9], "expected a number >= 0.001 and <= 100, got 1e-09"),
    ("imagine/ranges/turn", [10, 1e9, 10], "expected a number >= 0.01 and <= 360"),
    ("supervise/balance", ["D22"], "expected one of A1, A2, A3, A4, D1, D2, D3, D4, module:NAME, got 'D22' (str); did you mean D2?"),
    ("supervise/tasks", ["A9"], "expected one of A1"),
    ("supervise/shares/bogus", 1.0, "expected one of train, val, test, got 'bogus'"),
    ("supervise/shares/tset", 0.0, "did you mean test?"),
    ("supervise/shares/train", -0.5, "expected a number >= 0 and <= 1, got -0.5"),
    ("supervise/per_scene", -1, "expected a number >= 0"),
    ("supervise/hallucinations/detector", "detr", "expected one of none, detector, module:Class, got 'detr'"),
    ("supervise/hallucinations/contradicted", "dorp", "expected one of drop, mark, got 'dorp' (str); did you mean drop?"),
    ("supervise/hallucinations/min_share", 0, "expected a number > 0 and <= 1, got 0.0"),
    ("supervise/rules/nominal", "yes", "expected bool, got 'yes'"),
    ("imagine/nominal", 1, "expected bool, got 1"),
    ("imagine/filters/svc/untestable", "kep", "expected one of keep, drop, got 'kep' (str); did you mean keep?"),
    ("scenes/source", "roms", "expected one of rooms, photos, panoramas, got 'roms' (str); did you mean rooms?"),
    ("scenes/source", {"rooms": 0.5, "photo": 0.5}, "expected one of rooms, photos, panoramas, got 'photo' (str); did you mean photos?"),
    ("supervise/rules/phrasings", ["chioce"], "expected one of direct, choice, sentence, got 'chioce' (str); did you mean choice?"),
    ("supervise/rules/max_examples", 0, "expected a number >= 1, got 0"),
    ("annotate/objects", "detectr", "expected one of none, detector, module:Class, got 'detectr' (str); did you mean detector?"),
    ("annotate/depth", "zoe", "expected one of none, depth_model, module:Class"),
    ("annotate/options/object", {}, "expected one of objects, depth, camera, got 'object' (str); did you mean objects?"),
    ("annotate/area", [0.01, 1.6], "expected a number >= 0 and <= 1, got 1.6"),
    ("annotate/batch_size", 0, "expected a number >= 1, got 0"),
    ("scenes/n", -5, "expected a number >= 0, got -5"),
    ("scenes/per_shard", -5, "expected a number >= 1, got -5"),
    ("scenes/per_shard", 0, "expected a number >= 1, got 0"),
    ("scenes/size", [64, 0], "expected a number >= 8 and <= 8192, got 0"),
    ("scenes/fov_deg", 180, "expected a number > 0 and < 180, got 180.0"),
    ("scenes/fov_deg", float("nan"), "expected a number > 0 and < 180, got nan"),
    ("scenes/seed", -1, "expected a number >= 0"),
    ("scenes/workers", 10**9, "expected a number >= 0 and <= 1024"),
    ("real_turns/anchors", 0, "expected a number >= 1, got 0"),
    ("real_turns/supervise/tasks", ["A9"], "expected one of A1"),
    ("held_out/scenes/fov_deg", 0, "expected a number > 0 and < 180"),
    ("label_audit/transitions", 0, "expected a number >= 1"),
    ("teacher_quality/turns", [10, -20], "expected a number > 0 and <= 180, got -20.0"),
    ("sft/learning_rate", -5, "expected a number > 0 and <= 1, got -5.0"),
    ("sft/learning_rate", 10**400, "expected a smaller number"),
    ("sft/gradient_accumulation_steps", 0, "expected a number >= 1, got 0"),
    ("sft/attention", "sdap", "expected one of eager, sdpa, flash_attention_2, got 'sdap' (str); did you mean sdpa?"),
    ("sft/box_format", "pixel", "did you mean pixels?"),
    ("sft/directions", ["forwards"], "did you mean forward?"),
    ("sft/epochs", 0, "expected a number > 0"),
    ("grpo/num_generations", 1, "expected a number >= 2, got 1"),
    ("grpo/reward", "papers", "expected one of tasks, paper, got 'papers' (str); did you mean paper?"),
    ("grpo/vllm", "colocated", "expected one of off, colocate, server, got 'colocated' (str); did you mean colocate?"),
    ("sft/nodes", 0, "expected a number >= 1, got 0"),
    ("grpo/temperature", 0, "expected a number > 0"),
    ("grpo/format_weight", 2, "expected a number >= 0 and <= 1"),
    ("evaluate/engine", "transfomers", "did you mean transformers?"),
    ("evaluate/max_new_tokens", 0, "expected a number >= 1"),
    ("comparison/sources/vsibnch", "x", "did you mean vsibench?"),
    ("comparison/depths", [0], "expected a number >= 1 and <= 10, got 0"),
    ("comparison/view_search/guessed_range", [0, 10], "expected a number >= 0 and <= 9, got 10"),
    ("base/curriculum", [{"steps": -2}], "expected a number >= 1, got -2"),
    ("base/box_format", "norm100", "did you mean norm1000?"),
    ("svc/views", 1, "expected a number >= 2 and <= 64, got 1"),
    ("svc/prediction_type", "epsilom", "did you mean epsilon?"),
]


@pytest.mark.parametrize("path, value, message", WRONG)
@pytest.mark.parametrize("layer", ["", "profiles/mini/", "arms/bidirectional/"])
def test_wrong_ranges_and_names_settings(path, value, message, layer):
    "In the section itself, in a profile and in an arm."
    section = path.split("/")[0]
    with pytest.raises(ConfigError) as e: load_settings(SECTIONS[section], section, "mini", "bidirectional", changed(load_params(), layer + path, value))
    assert str(e.value).startswith("params.yaml: " + (layer + path).replace("/", ".")) and message in str(e.value)


@pytest.mark.parametrize("make, message", [
    (lambda: Scenes(n=-5), "Scenes.n: expected a number >= 0, got -5"),
    (lambda: replace(Scenes(), per_shard=0), "Scenes.per_shard: expected a number >= 1, got 0"),
    (lambda: Scenes(n="3"), "Scenes.n: expected int, got '3' (str)"),
    (lambda: Imagine(move_step=1e-9), "Imagine.move_step: expected a number >= 0.01"),
    (lambda: Imagine(filters={"scv": Filter()}), "Imagine.filters.scv: expected one of"),
    (lambda: Imagine(options={"svcc": {}}), "did you mean svc?"),
    (lambda: Supervise(shares={"train": 0.5}), "Supervise.shares: {'train': 0.5} do not add up to 1"),
    (lambda: Rules(phrasings=("song",)), "Rules.phrasings[0]: expected one of direct, choice, sentence"),
    (lambda: SFT(learning_rate=-5), "SFT.learning_rate: expected a number > 0 and <= 1, got -5"),
    (lambda: GRPO(gradient_accumulation_steps=0), "GRPO.gradient_accumulation_steps: expected a number >= 1"),
    (lambda: Base(curriculum=[Phase(0)]), "Phase.steps: expected a number >= 1"),
])
def test_wrong_values_in_python_settings(make, message):
    with pytest.raises(ValueError) as e: make()
    assert message in str(e.value)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
@given(value=st.one_of(st.none(), st.text(max_size=5), st.binary(max_size=3), st.complex_numbers(), st.just(float("nan")), st.just(float("-inf")), st.just(-10**400)))
@settings(max_examples=30)
def test_values_of_no_use_are_refused_by_name_settings(cls, value):
    "A value that no number can have, in every field that is a number."
    good = Phase(1) if cls is Phase else cls()
    for name, kind in _annotations(cls).items():
        number = get_args(kind)[0] if get_origin(kind) is Annotated else kind
        if number not in (int, float): continue
        with pytest.raises(ConfigError, match=rf"{cls.__name__}\.{name}: expected"): replace(good, **{name: value})


def test_motions_that_fit_nowhere_end_the_search_settings():
    "A room of 6 m has no way of 20 m; the label audit says so, and does not look for ever."
    config = LabelAudit(scenes=Scenes(size=(16, 16)), imagine=Imagine(presets={"forward_turn": 1}, ranges=Ranges(move=(20, 20.1, .1))), transitions=4, parts=1)
    with pytest.raises(ValueError, match="label_audit.imagine: no motion fits into 100 rooms"): audit_labels(config)


def test_own_names_pass_settings(monkeypatch):
    "`module:Class`, and names that a user registers."
    assert Imagine(options={"my_code:Painter": {"width": 3}}, filters={"my_code:Painter": Filter()}).options
    assert Supervise(tasks=("A1", "my_code:LARGER"), balance=("my_code:LARGER",)).tasks[1] == "my_code:LARGER"
    assert Evaluate(engine="my_code:Student").engine == "my_code:Student"
    monkeypatch.setitem(TEACHERS, "grey", "my_code:Grey")
    assert Imagine(options={"grey": {}}).options == {"grey": {}}


def test_numpy_numbers_and_lists_become_plain_settings():
    np = import_module("numpy")
    config = Scenes(n=np.int64(3), size=[64, 48], fov_deg=np.float32(60))
    assert config == Scenes(n=3, size=(64, 48), fov_deg=60.0) and type(config.n) is int and type(config.fov_deg) is float and type(config.size) is tuple
