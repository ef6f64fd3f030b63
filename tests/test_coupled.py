"The coupled baseline: what is shown, said and imagined agrees; pruning, thresholds and early stops behave as described; killed and resumed."
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from world2vlm import coupled
from world2vlm.core.camera import Action
from world2vlm.core.records import keyframe_poses
from world2vlm.core.actions import format_actions, merge_actions, parse_actions, plan
from world2vlm.evaluation.benchmarks.base import Item
from world2vlm.students.models import Reply
from world2vlm.evaluation.benchmarks.rooms import load_rooms
from world2vlm.evaluation.view_search import ViewSearch, _answer_with_search, ask_with_search, _best_views, _extend_path, _imagine_paths, _read_scores, _scene_of_item, _search_views, _path_steps, _trajectory_of
from world2vlm.dataset.synthesis import Imagine, Scenes, Supervise
from world2vlm.evaluation.benchmarks.rooms import RoomsBenchmark, make_rooms_benchmark
from world2vlm.teachers.base import load_teacher

RNG = lambda: np.random.default_rng(0)
ACTIONS = st.builds(Action, st.sampled_from(["forward", "turn_left", "turn_right"]), st.sampled_from([9., 18., 27.]))


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    out = tmp_path_factory.mktemp("coupled") / "transitions"
    make_rooms_benchmark(RoomsBenchmark(Scenes(n=4, first=970_000, seed=3, size=(48, 48), per_shard=4), Imagine(presets={"single": 3}), Supervise(per_scene=1)), out)
    return load_rooms(str(out))


@pytest.fixture(scope="module")
def truth(): return load_teacher("simulator", radius=0.0)


@pytest.fixture(scope="module")
def free(items, truth): return next(i for i in items if len(_imagine_paths(i.scene, _extend_path((), ViewSearch()), truth, ViewSearch(), Counter())) == 9)


class Scripted:
    "Scores by caption; remembers what it was shown."
    def __init__(self, explore=None, helpful=None, says="left"): self.scores, self.says, self.seen, self.asked = dict(explore=explore or {}, helpful=helpful or {}), says, [], []
    def key(self, settings): return "scripted"
    def reply(self, prompts, max_new_tokens): return [Reply(self.said(*prompt), 7) for prompt in prompts]
    def said(self, prompt, system):
        which = next((name for name in self.scores if coupled.SCORE[name] in system), None)
        if which is None: self.asked.append(prompt); return self.says
        pairs = [(text.split(" if you ")[1].removesuffix(":\n"), image) for text, image in zip(prompt, prompt[1:]) if isinstance(text, str) and text.startswith("Imagined image")]
        self.seen += pairs
        return "Output: " + ", ".join(str(self.scores[which].get(caption, 0)) for caption, _ in pairs)


def test_pose_caption_and_picture_of_every_candidate_agree(free, truth):
    student = Scripted(explore={"turn left 18 degrees": 9, "turn right 9 degrees": 8}, helpful={"turn left 9 degrees": 9, "turn right 27 degrees": 8})
    for config in (ViewSearch(), ViewSearch(together=False)):
        _search_views(free, student, truth, config, RNG(), Counter())
    assert len(student.seen) > 30
    for caption, image in student.seen:  # the caption alone, read as a motion, gives the picture
        way = parse_actions(caption.replace(", and then ", "; "))
        assert (truth.imagine(free.scene, [plan(way)], 0)[0].images[-1] == image).all(), caption


@given(st.lists(ACTIONS, min_size=1, max_size=4))
@settings(max_examples=50, deadline=None)
def test_views_lie_where_their_actions_lead(way):
    views = keyframe_poses(_trajectory_of(tuple(way), 3))
    assert len(views) == 3 and np.allclose(views, [plan(actions).poses[-1] for actions in _path_steps(tuple(way), 3)])
    assert format_actions(merge_actions(_path_steps(tuple(way), 3)[-1])) == format_actions(merge_actions(way))


def test_pruning():
    kinds = lambda history, **told: [way[-1].kind for way in _extend_path(history, ViewSearch(**told))]
    assert kinds(()) == ["forward", "turn_left", "turn_right"]
    assert kinds((Action("turn_left", 27),)) == ["forward", "turn_left"]  # not straight back
    assert kinds((Action("turn_left", 36),)) == ["forward"]  # 36 + 27 > 60
    assert kinds((Action("forward", .75),)) == ["forward", "turn_left", "turn_right"] and kinds((Action("forward", .75),), most_move=1.4) == ["turn_left", "turn_right"]
    assert kinds((Action("turn_left", 36), Action("forward", .25))) == ["forward", "turn_left", "turn_right"]  # only the last action counts


def test_thresholds_beams_and_ties():
    views = list("abcdef")
    assert _best_views(views, [9, 7, 8, 9, 3, 8], 8, 3) == ["a", "d", "c"] and _best_views(views, [0] * 6, 8, 3) == []


def test_it_stops_when_nothing_deserves_a_further_step(free, truth):
    account = Counter()
    kept = _search_views(free, Scripted(helpful={"turn left 9 degrees": 9}), truth, ViewSearch(), RNG(), account)
    assert [v.caption for v in kept] == ["turn left 9 degrees"] and account["steps"] == 1 and account["calls"] == 2


def test_depth_beams_and_evidence_bound_the_cost(free, truth):
    eager = {f"turn left {d} degrees": 9 for d in range(9, 200, 9)} | {"move forward 0.25 meters": 9}
    for depth in (1, 2, 3):
        account = Counter()
        kept = _search_views(free, Scripted(eager, eager), truth, ViewSearch(depth=depth, evidence=2), RNG(), account)
        assert account["steps"] == depth and len(kept) <= 2 * depth and account["calls"] == 2 * depth - 1 and account["rollouts"] <= 3 + 6 * (depth - 1)


def test_unreadable_scores_are_guessed_from_the_seed(free, truth):
    for text, n in (("", 1), ("9 9", 2), ("9, 9", 3), ("a, b", 2)): assert _read_scores(text, n) is None
    assert _read_scores("I think.\nOutput: 1,2, 9", 3) == [1, 2, 9]
    class Mute(Scripted):
        def said(self, prompt, system): return "a room"
    told = [_answer_with_search(free, Mute(), truth, ViewSearch(guess=(0, 9), seed=seed)) for seed in (0, 0, 1)]
    assert told[0]["evidence"] == told[1]["evidence"] and told[0]["guessed"] >= 1
    assert _answer_with_search(free, Mute(), truth, ViewSearch(tries=3))["calls"] == 7 and _answer_with_search(free, Mute(), truth, ViewSearch())["evidence"] == []  # 3 tries, twice, and the answer


def test_without_evidence_it_is_the_benchmarks_own_prompt(free, truth):
    from world2vlm.evaluation.benchmarks.base import BENCHMARKS, open_benchmark
    plainly, helped = Scripted(), Scripted(helpful={"turn left 9 degrees": 9})
    _answer_with_search(free, plainly, truth, ViewSearch(depth=1)), _answer_with_search(free, helped, truth, ViewSearch(depth=1))
    own = open_benchmark("transitions").prompt(free)
    assert all(a is b or (np.asarray(a) == np.asarray(b)).all() for a, b in zip(plainly.asked[0], own, strict=True))
    assert len(helped.asked[0]) == len(own) + 3 and helped.asked[0][-1] == own[-1]


def test_a_question_without_a_picture_is_an_error():
    with pytest.raises(ValueError, match="does not take videos"): _scene_of_item(Item("1", "object_counting", "How many?", (), "3", video="a.mp4"), ViewSearch())


def test_killed_and_resumed(items, truth, tmp_path):
    class Dies(Scripted):
        def said(self, prompt, system):
            if len(self.asked) == 4: raise KeyboardInterrupt
            return super().said(prompt, system)
    config, scores = ViewSearch(depth=2), dict(explore={"turn left 9 degrees": 9}, helpful={"turn right 9 degrees": 9})
    whole = ask_with_search(Scripted(**scores), truth, "transitions", items, config=config)
    with pytest.raises(KeyboardInterrupt): ask_with_search(Dies(**scores), truth, "transitions", items, tmp_path / "a.jsonl", config)
    assert 0 < (tmp_path / "a.jsonl").read_text().count("\n") < len(items)
    again = ask_with_search(Scripted(**scores), truth, "transitions", items, tmp_path / "a.jsonl", config)
    timeless = lambda rows: [{k: v for k, v in row.items() if k not in ("seconds", "searching")} for row in rows]
    assert timeless(again) == timeless(whole)
