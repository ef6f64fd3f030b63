import re
import sys
from collections import Counter
from dataclasses import replace
from itertools import combinations, groupby, product

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from world2vlm.core.camera import ACTION_KINDS, Action
from world2vlm.core.actions import Ranges, format_actions, plan, sample_actions
from world2vlm.core.config import ConfigError, _from_dict
from world2vlm.evaluation.label_audit import LabelAudit, audit_labels
from world2vlm.tasks.rewards import BOX_PATTERN, paper_reward
from world2vlm.core.records import iou
from world2vlm.core.records import Instance
from world2vlm.scenes.room import room_scenes
from world2vlm.tasks.answers import BOX_FORMATS, convert_boxes, ends_differ, end_pose, _read_answer_box, _read_motion, _read_yes, canonical_motion
from world2vlm.tasks.rules import Rules
from world2vlm.tasks.tasks import TASKS, _answer_class, balance_answers, balance_report, open_task
from world2vlm.tasks.distractors import box_distractors, _edited, _edits, false_claim, motion_distractors, _exchanges, _follows_preset
from world2vlm.tasks.cases import _label_class, object_id
from world2vlm.tasks.rules import visibility_state
from world2vlm.core.records import Transition, transitions_of
from world2vlm.tasks.visibility import candidates, mask_box
from world2vlm.teachers.base import load_teacher

A = Action
RULES = Rules(move=(0.2, 1.5), turn=(10, 60))
RANGES = Ranges(move=(0.2, 1.5, 0.1), turn=(10, 60, 10))
WALKS = ("single", "single", "forward_turn", "turn_forward", "shift_forward_turn")


def simulated(n, seed, walks=WALKS, size=(48, 48)) -> list[Transition]:
    "Transitions of both evidences from `n` rooms."
    rng, found = np.random.default_rng(seed), []
    for scene in room_scenes(n, seed=seed, size=size):
        ways = [plan(sample_actions(rng, preset, RANGES)) for preset in walks]
        for teacher in ("simulator", "reprojection"):
            found += [transitions_of(scene, r)[-1] for r in load_teacher(teacher).imagine(scene, ways)]
    return found


@pytest.fixture(scope="module")
def views(): return simulated(10, seed=3)


@pytest.fixture(scope="module")
def examples(views):
    "Every task at every transition, with the transition."
    rng = np.random.default_rng(0)
    return [(e, t) for t in views for task in TASKS.values() for _ in range(2) for e in task.derive(t, rng, RULES)]


def test_boxes_do_not_rest_on_a_guess(views):
    "After turns an assumed field of view gives no boxes, after moves an untrusted depth gives none; all other questions stay as they were."
    derived = lambda views, **rules: Counter((t.actions, e.task) for t in views for task in TASKS.values()
                                             for e in task.derive(t, np.random.default_rng(0), Rules(move=(0.2, 1.5), turn=(10, 60), **rules)))
    guessed = lambda **about: [replace(t, scene=replace(t.scene, **about), cache={}) for t in views]
    lost = lambda known, views, **rules: {(any(a.is_turn for a in actions), not all(a.is_turn for a in actions), task) for actions, task in derived(known) - derived(views, **rules)}
    assert lost(views, guessed(K_evidence="assumed"), assumed_camera=True) == lost(views, guessed(depth_evidence="estimated")) == set()
    assert {(turns, task) for turns, _, task in lost(views, guessed(K_evidence="assumed"))} == {(True, "D1"), (True, "D3")}
    assert {(moves, task) for _, moves, task in lost(views, guessed(depth_evidence="estimated"), estimated_depth=False)} == {(True, "D1"), (True, "D3")}
    skipped = Counter()
    for t in guessed(K_evidence="assumed"): TASKS["D1"].derive(t, np.random.default_rng(0), RULES, skipped)
    assert skipped["D1: the field of view is assumed"] > 10


def settled(e): return TASKS[e.task].answer_type.unpack(e.target[TASKS[e.task].answer_type.name])


def test_every_task_and_phrasing_is_derived(examples):
    assert {(e.task, e.phrasing) for e, _ in examples} == set(product(TASKS, RULES.phrasings))
    assert {e.evidence for e, _ in examples} == {"exact", "warped"}
    for e, t in examples:
        assert len(e.images) == (1 if e.task in ("D1", "D2") else 2) and e.images[0] is t.image_before
        assert e.direction == ("inverse" if e.task in ("A1", "A2", "A3", "D3") else "forward")
        assert sum(v is not None for v in e.target.values()) == 1 and set(e.target) == {"actions", "box", "yes"}
        assert "{" not in e.question + e.answer


def test_the_gold_answer_of_every_phrasing_earns_everything(examples):
    for e, _ in examples:
        parts = TASKS[e.task].score(e.answer, e)
        assert all(v == 1.0 for v in parts.values()), (e.question, e.answer, parts)
        assert TASKS[e.task].parse(e.answer, e) == settled(e)


def test_direct_gold_answers_earn_the_papers_reward_too(examples):
    for e, _ in examples:
        if e.phrasing == "direct": assert paper_reward(e.task, e.answer, e.answer)["overall"] == pytest.approx(1)


def test_wrong_letters_earn_less(examples):
    for e, _ in examples:
        for letter in set(e.choices or ()) - {e.answer}:
            parts = TASKS[e.task].score(letter, e)
            assert parts["overall"] < 0.95 and parts["format"] == 1.0


def test_option_texts_count_as_their_letters(examples):
    for e, _ in examples:
        for letter, option in (e.choices or {}).items():
            wanted = TASKS[e.task].score(letter, e)["overall"]
            for text in (f"{letter}. {option}", f"({letter})", letter.lower(), option, f"The answer is {letter}."):
                assert TASKS[e.task].score(text, e)["overall"] == wanted


@settings(max_examples=60, deadline=None)
@given(text=st.one_of(st.text(max_size=60), st.from_regex(r"(move|turn) (left|right|forward) -?\d{1,4}(\.\d)? (meters|degrees)"),
                      st.lists(st.floats(-9e3, 9e3), min_size=3, max_size=5).map(str)))
def test_any_response_gets_marks_between_zero_and_one(examples, text):
    for e in {e.task + e.phrasing: e for e, _ in examples}.values():
        parts = TASKS[e.task].score(text, e)
        assert list(parts)[:2] == ["overall", "format"] and all(0 <= v <= 1 for v in parts.values())
    assert TASKS["A1"].score("", examples[0][0])["overall"] == 0


def test_parts_are_the_same_for_every_response(examples):
    for e in {e.task: e for e, _ in examples}.values():
        assert TASKS[e.task].score("", e).keys() == TASKS[e.task].score(e.answer, e).keys()


# The eight defects of the release, each shown absent

def test_defect_1_a_turn_to_the_right_carries_the_picture_to_the_left():
    scene = next(s for s in room_scenes(20, seed=3, size=(64, 64)))
    for kind, sign in (("turn_right", -1), ("turn_left", 1)):
        [rollout] = load_teacher("simulator").imagine(scene, [plan([A(kind, 10)])])
        t = transitions_of(scene, rollout)[0]
        [e] = TASKS["A2"].derive(t, np.random.default_rng(0), Rules(phrasings=("direct",)))
        assert e.answer == f"{kind.replace('_', ' ')} 10 degrees"
        for d1 in TASKS["D1"].derive(t, np.random.default_rng(0), Rules(max_examples=9)):
            before = mask_box(next(i.mask for i in scene.instances if str(i.id) == d1.id.split("/")[-1]))
            assert sign * (sum(d1.target["box"][::2]) - sum(before[::2])) > 0


def test_defect_2_letters_and_sentences_of_yes_no_tasks_earn_their_reward(examples):
    for e, _ in examples:
        if e.task not in ("A4", "D2", "D4") or e.phrasing == "direct": continue
        assert paper_reward(e.task, e.answer, e.answer)["overall"] == 0  # what the release gives to its own gold answer
        other = "AB"[e.answer == "A"] if e.choices else {"yes": "No, it is not.", "no": "Yes."}["yes" if e.target["yes"] else "no"]
        assert [TASKS[e.task].score(text, e)["overall"] for text in (e.answer, other)] == [1.0, 0.0]


def at_the_border(size=64):
    "An object that the left border cuts, 3 m ahead in an empty scene, and its scene."
    scene = next(room_scenes(1, seed=3, size=(size, size)))
    mask = np.zeros((size, size), bool)
    mask[24:40, :12] = True
    return replace(scene, depth=np.full((size, size), 3.0, np.float32), instances=[Instance(1, "red chair", mask)])


@pytest.mark.parametrize("degrees, gone", [(0.5, False), (3, False), (60, True)])
def test_defect_3_an_object_at_the_border_is_gone_only_when_geometry_says_so(degrees, gone):
    scene = at_the_border()
    [rollout] = load_teacher("reprojection", max_unseen=1.0).imagine(scene, [plan([A("turn_right", degrees)])])
    [e] = TASKS["D2"].derive(transitions_of(scene, rollout)[0], np.random.default_rng(0))
    assert e.target["yes"] is gone


def test_defect_3_exact_labels_follow_the_true_ids(examples):
    for e, t in examples:
        if e.task != "D2" or e.evidence != "exact": continue
        left = int((t.ids_after == int(e.id.split("/")[-1])).sum())
        assert left == 0 or not e.target["yes"] or left <= 0.1 * next(i.mask.sum() for i in t.scene.instances if str(i.id) == e.id.split("/")[-1])
        assert left > 0 or e.target["yes"]


def shown_boxes(e): return [tuple(float(v) / 1000 for v in m.groups()) for m in BOX_PATTERN.finditer(e.question.split("\n")[0])]


def test_defect_4_boxes_in_the_second_view_belong_to_the_true_object(examples):
    for e, t in examples:
        if e.task not in ("D3", "D4") or e.evidence != "exact": continue
        me = next(i for i in t.scene.instances if str(i.id) == e.id.split("/")[-1])
        before, after = shown_boxes(e)
        assert before == pytest.approx(mask_box(me.mask), abs=1e-3)
        owner = [i for i in t.scene.instances if (box := mask_box(t.ids_after == i.id)) and after == pytest.approx(box, abs=1e-3)]
        assert owner and _label_class(owner[0]) == _label_class(me)
        assert (me.id in {i.id for i in owner}) == (True if e.task == "D3" else e.target["yes"])


@pytest.mark.parametrize("name, words", [("A1", ("forward", "backward", "left", "right")), ("A2", ("left", "right"))])
def test_defect_5_no_question_names_the_direction_it_asks_for(name, words, examples):
    task = TASKS[name]
    for text in (*task.questions, task.instruction, task.sentence_instruction):
        assert {w for w in words if re.search(rf"\b{w}\b", text)} in (set(), set(words))
    for e, _ in examples:
        if e.task == name and e.phrasing != "choice": assert {w for w in words if re.search(rf"\b{w}\b", e.question)} in (set(), set(words))


def test_defect_5_options_do_not_point_at_the_truth(examples):
    for e, _ in examples:
        if e.task not in ("A1", "A2") or not e.choices: continue
        [kinds, amounts] = zip(*[(a.kind, a.amount) for [a] in map(_read_motion, e.choices.values())])
        assert set(Counter(kinds).values()) | set(Counter(amounts).values()) <= {1, 2, 4}
        assert len({(Counter(kinds)[k], Counter(amounts)[v]) for k, v in zip(kinds, amounts)}) == 1  # every option looks alike


def test_defect_6_metres_and_degrees_stay_apart(examples):
    for e, t in examples:
        if e.target["actions"] is None: continue
        turned = sum(a["amount"] for a in e.target["actions"] if a["kind"].startswith("turn"))
        assert turned == sum(a.amount for a in t.actions if a.is_turn)  # presets turn once
        assert np.allclose(end_pose(settled(e)), t.pose, atol=1e-6)  # metres and degrees lead to the pose of the view


def test_defect_7_no_false_claim_is_true_and_no_true_claim_false(examples):
    for e, t in examples:
        if e.task != "A4": continue
        claim = _read_motion(max(re.findall(r"(?:(?:move|turn) \w+ [\d.]+ \w+(?:; )?)+", e.question), key=len))
        assert e.target["yes"] == np.allclose(end_pose(claim), t.pose, atol=1e-6)
        assert len(claim) == len(canonical_motion(t.actions)) and _follows_preset(claim)


def test_defect_7_wrong_options_are_wrong(examples):
    for e, t in examples:
        if not e.choices: continue
        typed = [TASKS[e.task].answer_type.read(v) for v in e.choices.values()]
        assert len(typed) == (2 if e.target["yes"] is not None else 4) and typed["ABCD".index(e.answer)] == settled(e)
        if e.target["actions"]: assert all(ends_differ(a, b) for a, b in combinations(typed, 2))
        if e.target["box"]: assert all(iou(a, b) < RULES.max_overlap for a, b in combinations(typed, 2))


def test_defect_8_what_is_left_out_is_counted(views):
    for t in views[:30]:
        for name in ("D1", "D2", "D3", "D4"):
            count = Counter()
            made = TASKS[name].derive(t, np.random.default_rng(0), replace(RULES, max_examples=99), count)
            assert len(made) + count.total() == len(candidates(t.scene, RULES.area))
            assert all(reason.startswith(f"{name}: ") for reason in count)


def test_defect_8_the_same_seed_gives_the_same_examples(views):
    def run(seed):
        rng = np.random.default_rng(seed)
        return [(e.id, e.question, e.answer, e.choices) for t in views[:12] for task in TASKS.values() for e in task.derive(t, rng, RULES)]
    assert run(5) == run(5) != run(6)


def test_ids_are_unique(views):
    rng = np.random.default_rng(0)
    ids = [e.id for t in views for task in TASKS.values() for e in task.derive(t, rng, RULES)]
    assert len(set(ids)) == len(ids)


# Motions

actions = st.lists(st.tuples(st.sampled_from(ACTION_KINDS), st.integers(1, 15)).map(lambda p: A(p[0], p[1] * (10 if "turn" in p[0] else 0.1))), max_size=5)


@settings(deadline=None)
@given(actions)
def test_settling_keeps_the_end_and_is_final(motion):
    form = canonical_motion(motion)
    assert np.allclose(end_pose(form), end_pose(motion), atol=1e-9)
    assert canonical_motion(form) == form and canonical_motion([a.opposite for a in reversed(motion)] + motion) == ()
    assert not form or _read_motion(format_actions(form)) == form


@settings(deadline=None)
@given(actions, st.integers(0, 99))
def test_false_claims_end_elsewhere(motion, seed):
    truth = canonical_motion(motion)
    claim = false_claim(truth, np.random.default_rng(seed), RULES) if truth else None
    assert claim is None or (ends_differ(claim, truth, RULES) and len(claim) == len(truth))


def test_every_preset_has_false_claims_of_every_kind_and_options():
    rng = np.random.default_rng(0)
    for preset in WALKS:
        for _ in range(60):
            truth = canonical_motion(sample_actions(rng, preset, RANGES))
            options = motion_distractors(truth, rng, RULES)
            assert false_claim(truth, rng, RULES) and options and all(map(_follows_preset, options))
    truth = canonical_motion([A("turn_left", 30), A("forward", 1)])
    assert {e[0] for e in _edits(truth) + _exchanges(truth)} == {"swap", "mirror", "kind", "amount", "exchange"}
    assert _edited(truth, ("swap", 0, None)) == (A("forward", 1), A("turn_left", 30))


def test_the_order_of_two_moves_is_not_asked_for():
    e = Rules(phrasings=("direct",))
    scene = next(room_scenes(1, seed=3, size=(48, 48)))
    truth = canonical_motion([A("forward", 0.2), A("left", 0.2)])
    assert truth == canonical_motion([A("left", 0.2), A("forward", 0.2)])
    [rollout] = load_teacher("reprojection").imagine(scene, [plan([A("forward", 0.2), A("left", 0.2)])])
    [example] = TASKS["A3"].derive(transitions_of(scene, rollout)[-1], np.random.default_rng(0), e)
    for text in ("move forward 0.2 meters; move left 0.2 meters", "move left 0.2 meters; move forward 0.2 meters"):
        assert TASKS["A3"].score(text, example)["overall"] == 1.0
    assert TASKS["A3"].derive(transitions_of(scene, rollout)[0], np.random.default_rng(0), e) == []


def test_scores_fall_with_the_error(examples):
    e = next(e for e, _ in examples if e.task == "A2" and e.phrasing == "direct")
    [true] = settled(e)
    marks = [TASKS["A2"].score(format_actions([A(true.kind, true.amount * f)]), e)["overall"] for f in (1, 1.1, 1.5, 2, 5)]
    assert marks == sorted(marks, reverse=True) and marks[0] == 1 and marks[-1] == pytest.approx(0.4)
    assert TASKS["A2"].score(format_actions([true.opposite]), e)["overall"] == 0
    twice = f"{format_actions([true])}; move forward 1 meters"
    assert TASKS["A2"].score(twice, e)["overall"] == pytest.approx(0.5)


@pytest.mark.parametrize("text, truth, right", [
    ("turn left 30 degrees", "turn left 40 degrees", True), ("turn left 20 degrees", "turn left 40 degrees", False), ("turn right 40 degrees", "turn left 40 degrees", False),
    ("move left 0.5 meters", "move left 0.4 meters", True), ("move left 0.6 meters", "move left 0.4 meters", False), ("The camera moved left by 0.4 m.", "move left 0.4 meters", True),
    ("move forward 1 meters; turn left 20 degrees", "turn left 20 degrees; move forward 1 meters", False), ("turn left 20 degrees", "turn left 20 degrees; move forward 1 meters", False),
    ("turn left 20 degrees; move forward 1 meters; turn right 10 degrees", "turn left 20 degrees; move forward 1 meters", False), ("hm", "move left 0.4 meters", False)])
def test_a_motion_is_exactly_right_within_one_step_of_the_grid(examples, text, truth, right):
    e = next(e for e, _ in examples if e.task == "A3" and e.phrasing == "direct")
    e = replace(e, answer=truth, target=TASKS["A3"].answer_type.target(_read_motion(truth)))
    assert TASKS["A3"].exact(text, e) is right
    assert TASKS["A3"].exact(text, e, Rules(tolerance=(0, 0))) is (right and _read_motion(text) == _read_motion(truth))


@pytest.mark.parametrize("text, right", [("[0, 0, 500, 500]", True), ("[0, 0, 500, 260]", True), ("[0, 0, 500, 240]", False), ("[600, 600, 900, 900]", False), ("", False)])
def test_a_box_is_exactly_right_from_an_iou_of_a_half(examples, text, right):
    e = next(e for e, _ in examples if e.task == "D1" and e.phrasing == "direct")
    assert TASKS["D1"].exact(text, replace(e, target=TASKS["D1"].answer_type.target((0.0, 0.0, 0.5, 0.5)))) is right


def test_gold_answers_are_exactly_right_and_wrong_letters_are_not(examples):
    for e, _ in examples:
        assert TASKS[e.task].exact(e.answer, e) and not TASKS[e.task].exact("hm", e)
        assert not any(TASKS[e.task].exact(letter, e) for letter in set(e.choices or ()) - {e.answer})


# Objects

def test_visibility_rule():
    assert [visibility_state(s, Rules(min_visible=0.5, max_gone=0.1)) for s in (0.5, 0.49, 0.11, 0.1)] == ["visible", "ambiguous", "ambiguous", "gone"]
    with pytest.raises(ValueError, match="max_gone < min_visible"): Rules(min_visible=0.1, max_gone=0.1)
    assert _from_dict(Rules, {"min_visible": 0.3, "turn": [10, 60]}, "tasks").turn == (10.0, 60.0)


def test_an_object_is_named_by_its_label_only_where_that_is_enough():
    scene = at_the_border()
    other = np.roll(scene.instances[0].mask, 30, 1)
    crowd = replace(scene, instances=[*scene.instances, Instance(2, "red chair", other)])
    for s, boxes in ((scene, 0), (crowd, 1)):
        [rollout] = load_teacher("reprojection").imagine(s, [plan([A("turn_right", 3)])])
        for e in TASKS["D2"].derive(transitions_of(s, rollout)[0], np.random.default_rng(0)):
            assert len(shown_boxes(e)) == boxes and (BOX_FORMATS["norm1000"] in e.question) == (bool(boxes) or e.phrasing == "sentence")


def test_d4_needs_another_object_of_the_class():
    scene = at_the_border()
    crowd = replace(scene, instances=[Instance(k, label, np.roll(scene.instances[0].mask, 24 * k - 10, 1))
                                      for k, label in ((1, "red chair"), (2, "blue chair"))])
    lone = replace(crowd, instances=[crowd.instances[0], replace(crowd.instances[1], label="blue lamp")])
    count, rng = Counter(), np.random.default_rng(0)
    made = {}
    for s in (lone, crowd):
        [rollout] = load_teacher("reprojection").imagine(s, [plan([A("turn_right", 3)])])
        made[s.instances[1].label] = [e for _ in range(40) for e in TASKS["D4"].derive(transitions_of(s, rollout)[0], rng, skipped=count)]
    assert made["blue lamp"] == [] and count["D4: no other of its class in the second view"] == 80
    assert 20 < sum(e.target["yes"] for e in made["blue chair"]) < 60
    assert not any("red" in e.question for e in made["blue chair"])  # a colour would answer the question


def test_box_options_form_a_square():
    rng = np.random.default_rng(0)
    for _ in range(100):
        x, y, w, h = rng.uniform((0.2, 0.2, 0.1, 0.1), (0.6, 0.6, 0.2, 0.2))
        truth = (x, y, x + w, y + h)
        wrong = box_distractors(truth, (x + 0.1, y, x + w + 0.1, y + h), rng)
        assert all(iou(a, b) < 0.5 for a, b in combinations([truth, *wrong], 2))


# Balance

def test_letters_and_yes_no_are_even(examples):
    four = Counter(e.answer for e, _ in examples if e.choices and len(e.choices) == 4)
    two = Counter(e.answer for e, _ in examples if e.choices and len(e.choices) == 2)
    assert min(four.values()) > 0.5 * max(four.values()) and min(two.values()) > 0.6 * max(two.values())
    yes = Counter(e.target["yes"] for e, _ in examples if e.task == "A4")
    assert 0.6 < yes[True] / yes[False] < 1.6


def test_balance_evens_out_each_evidence_and_drops_nothing_else(examples):
    made = [e for e, _ in examples]
    made = [replace(e, split="test" if i % 3 else "train") for i, e in enumerate(made)]
    even = balance_answers(made, np.random.default_rng(0))
    assert [e for e in made if e.task != "D2"] == [e for e in even if e.task != "D2"]
    counts = Counter((e.evidence, e.split, e.target["yes"]) for e in even if e.task == "D2")
    assert len(counts) == 8 and all(counts[(*key, True)] == counts[(*key, False)] for key in product(("exact", "warped"), ("train", "test")))
    mirrored = Counter(map(_answer_class, balance_answers([e for e in made if e.task in ("A1", "A2")], np.random.default_rng(0), ("A1", "A2"))))
    assert mirrored["left"] == mirrored["right"] and mirrored["turn_left"] == mirrored["turn_right"]
    report = balance_report(even)
    assert report["D2"]["answers"]["yes"] == report["D2"]["answers"]["no"] and set(report) == set(TASKS)
    assert sum(report["A4"]["phrasings"].values()) == sum(report["A4"]["answers"].values())


# Text

@pytest.mark.parametrize("text, said", [("yes", True), ("TRUE!", True), ("No, it stays", False), ("I say: no", False), ("it is not true", None),
                                        ("maybe", None), ("", None), ("It isn't so, false", None),
                                        ("The camera turned left 30 degrees, so the claim is false.", False), ("No other fits, so the claim is true.", True),
                                        ("It is then at [1, 2, 3, 4], so yes.", True), ("It leaves on the left: no, it is hidden.", False),
                                        ("so it is not true", None), ("No, it stays: it is no longer hidden.", False), ("Options: yes, no", None)])
def test_yes_and_no_in_words(text, said): assert _read_yes(text) is said


@settings(deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=4, max_size=4))
def test_boxes_survive_the_way_to_large_pictures_and_back(box):
    text = f"{BOX_FORMATS['norm1000']} From {box} to bbox {box[::-1]}?"
    there = convert_boxes(text, "pixels", (1932, 1092))
    assert there.startswith(BOX_FORMATS["pixels"]) and BOX_FORMATS["norm1000"] not in there
    assert convert_boxes(there, "pixels", (1932, 1092), back=True) == text
    assert convert_boxes(text, "norm1000", (64, 64)) == text


def test_boxes_in_pixels():
    assert convert_boxes("at [500, 250, 1000, 1000] now", "pixels", (200, 100)) == "at [100, 25, 200, 100] now"
    assert convert_boxes("bbox [100.4, 25, 200, 100].", "pixels", (200, 100), back=True) == "bbox [502, 250, 1000, 1000]."
    with pytest.raises(ValueError, match="box format 'cm'"): convert_boxes("", "cm", (1, 1))


def test_unknown_phrasing_is_an_error(views):
    with pytest.raises(ValueError, match="one of direct, choice, sentence"): TASKS["A4"].derive(views[0], np.random.default_rng(0), Rules(phrasings=("song",)))


# Sentences that reason before they judge

def test_sentences_of_claims_state_the_true_motion(examples):
    for e, t in examples:
        if (e.task, e.phrasing) == ("A4", "sentence"): assert _read_motion(e.answer) == canonical_motion(t.actions) and e.answer.endswith(f"the claim is {str(e.target['yes']).lower()}.")


def test_sentences_of_objects_state_where_the_true_ids_show_them(examples):
    places = Counter()
    for e, t in examples:
        if e.task not in ("D2", "D4") or e.phrasing != "sentence": continue
        stated = _read_answer_box(e.answer)
        places[e.answer.removeprefix("It is then ").split(",")[0] if stated is None else "box"] += 1
        assert stated is None or e.question.startswith(BOX_FORMATS["norm1000"])
        if stated is not None and e.evidence == "exact": assert stated == pytest.approx(mask_box(t.ids_after == object_id(e)), abs=1e-3)
        assert (stated is None) == e.target["yes"] or e.answer.startswith("It is then in view,") if e.task == "D2" else stated
        if e.task == "D4": assert (_read_answer_box(e.question) == stated) == e.target["yes"]
    assert {"box", "left of the view", "right of the view"} <= set(places)


def test_the_form_of_a_question_does_not_tell_its_answer(examples):
    "The line on boxes depends on task and phrasing only, not on whether the answer has a box."
    for key, pairs in groupby(sorted(((e.task, e.phrasing, e) for e, _ in examples), key=lambda p: p[:2]), key=lambda p: p[:2]):
        own = [e for *_, e in pairs if e.task == "D2"]
        assert len({e.question.startswith(BOX_FORMATS["norm1000"]) for e in own if not BOX_PATTERN.search(e.question)}) <= 1, key


@pytest.mark.parametrize("degrees, kind, place", [(60, "turn_right", "left of the view"), (90, "turn_left", "right of the view"), (180, "turn_left", "behind the camera")])
def test_an_object_that_turns_away_is_where_geometry_says(degrees, kind, place):
    scene = at_the_border()
    scene = replace(scene, instances=[replace(scene.instances[0], mask=np.roll(scene.instances[0].mask, 26, 1))])
    [rollout] = load_teacher("reprojection", max_unseen=1.0).imagine(scene, [plan([A(kind, degrees)])])
    [e] = TASKS["D2"].derive(transitions_of(scene, rollout)[0], np.random.default_rng(0), Rules(phrasings=("sentence",)))
    assert e.answer == f"It is then {place}, so yes." and TASKS["D2"].score(e.answer, e)["overall"] == 1


# Audits and own tasks

def flipped(target: dict) -> dict:
    "The same kind of answer, but wrong."
    if target["yes"] is not None: return target | {"yes": not target["yes"]}
    if target["actions"] is not None: return target | {"actions": target["actions"] + [{"kind": "forward", "amount": 1.0}]}
    x1, y1, x2, y2 = target["box"]
    return target | {"box": [1 - x2, 1 - y2, 1 - x1, 1 - y1]}


def test_audits_accept_labels_of_true_ids_and_reject_wrong_ones(examples):
    checked = Counter()
    for e, t in examples:
        if e.evidence != "exact": continue
        right, wrong = (TASKS[e.task].audit(example, t, RULES) for example in (e, replace(e, target=flipped(e.target))))
        assert right == 1 if e.task != "D1" else right > 0.9, e
        assert wrong == 0 if e.task != "D1" else wrong < right, e
        checked[e.task] += 1
    assert set(checked) == set(TASKS)


def test_objects_of_examples(examples):
    for e, t in examples: assert (object_id(e) in {i.id for i in t.scene.instances}) == (e.task in ("D1", "D2", "D3", "D4"))


OWN_TASK = '''
from world2vlm.tasks.answers import YES_NO
from world2vlm.tasks.cases import Case
from world2vlm.tasks.tasks import Task

def turn_cases(transition, rng, rules, skip):
    if len(transition.actions) > 1: skip("several actions"); return []
    return [Case(transition.actions[0].is_turn)]

TURNED = Task("TURNED", YES_NO, turn_cases, ("Did the camera turn between the two pictures?",), "inverse")
NOT_A_TASK = "TURNED"
'''


@pytest.fixture
def own_tasks(tmp_path, monkeypatch):
    (tmp_path / "own_tasks.py").write_text(OWN_TASK)
    monkeypatch.syspath_prepend(tmp_path)
    yield "own_tasks:TURNED"
    sys.modules.pop("own_tasks", None)


def test_an_own_task_is_opened_by_name_and_needs_nothing_else(own_tasks, views):
    task, rng, skipped = open_task(own_tasks), np.random.default_rng(0), Counter()
    made = [e for t in views for e in task.derive(t, rng, RULES, skipped)]
    assert {e.task for e in made} == {own_tasks} and {e.phrasing for e in made} == set(RULES.phrasings)
    assert skipped[f"{own_tasks}: several actions"] == len(views) - len(made) > 0
    for e in made:
        assert task.score(e.answer, e) == dict.fromkeys(("overall", "format", "accuracy"), 1.0) and open_task(e.task) == task
    assert task.title == "TURNED" and task.audit is None
    counts = balance_report(balance_answers(made, rng, (own_tasks,)))[own_tasks]["answers"]
    assert counts["yes"] == counts["no"] > 0


def test_a_task_without_audit_is_named_before_the_work(own_tasks):
    with pytest.raises(ValueError, match="'own_tasks:TURNED' has no audit"): audit_labels(LabelAudit(tasks=("A1", own_tasks), transitions=1, parts=1))


def test_task_names_and_fields_are_checked(own_tasks):
    assert open_task("A1") is TASKS["A1"]
    with pytest.raises(ConfigError, match="choose one of A1, A2"): open_task("A9")
    with pytest.raises(ConfigError, match="expected a Task, got str"): open_task("own_tasks:NOT_A_TASK")
    with pytest.raises(ValueError, match="direction 'sideways'"): replace(TASKS["A1"], direction="sideways")
