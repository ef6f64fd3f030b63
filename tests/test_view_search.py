"Test-time world model: pictures, captions and motions agree; pruning, thresholds and early stops; killed and resumed."
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from test_answering import without_time
from world2vlm.core.actions import format_actions, merge_actions, parse_actions, plan
from world2vlm.core.camera import Action
from world2vlm.core.records import keyframe_poses
from world2vlm.dataset.synthesis import Imagine, Scenes, Supervise
from world2vlm.evaluation.benchmarks.base import ask_benchmark, Item, open_benchmark
from world2vlm.evaluation.benchmarks.rooms import load_rooms, make_rooms_benchmark, RoomsBenchmark
from world2vlm.evaluation.search_log import _calls_page
from world2vlm.evaluation.view_search import (
    _answer_with_search, _best_views, _extend_path, _imagine_paths, _path_steps, _path_trajectory, _read_scores,
    _scene_of_item, _Search, _search_views, ask_with_search, search_cost, ViewSearch)
from world2vlm.students.models import Reply
from world2vlm.students.static_forms import SCORE_CRITERIA
from world2vlm.teachers.base import load_teacher

ACTIONS = st.builds(Action, st.sampled_from(["forward", "turn_left", "turn_right"]), st.sampled_from([9., 18., 27.]))
ROOMS = open_benchmark("rooms")


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    out, scenes = tmp_path_factory.mktemp("search") / "rooms", Scenes(n=4, first=970_000, seed=3, size=(48, 48), per_shard=4)
    make_rooms_benchmark(RoomsBenchmark(scenes, Imagine(presets={"single": 3}), Supervise(per_scene=1)), out)
    return load_rooms(str(out))


@pytest.fixture(scope="module")
def truth(): return load_teacher("simulator", radius=0.0)


def first_step(item, teacher) -> _Search:
    "A search that has imagined the three first paths."
    search = _Search(item, None, teacher)
    _imagine_paths(search, _extend_path((), search.config))
    return search


@pytest.fixture(scope="module")
def free(items, truth): return next(item for item in items if first_step(item, truth).cost["views"] == 9)


class Scripted:
    "Scores by caption; keeps the views and the prompts of the answers."
    def __init__(self, exploration=None, helpful=None, text="left"):
        self.scores = dict(exploration=exploration or {}, helpful=helpful or {})
        self.text, self.views, self.final = text, [], []

    def key(self, settings): return "scripted"
    def reply(self, prompts, max_new_tokens): return [Reply(self.answer(prompt), 7) for prompt in prompts]

    def answer(self, prompt):
        criterion = next((name for name, text in SCORE_CRITERIA.items() if text in prompt.system), None)
        if criterion is None:
            self.final.append(prompt)
            return self.text
        pairs = [(text.split(" if you ")[1].removesuffix(":\n"), image) for text, image in zip(prompt.pieces, prompt.pieces[1:])
                 if isinstance(text, str) and text.startswith("Imagined image")]
        self.views += pairs
        return "Output: " + ", ".join(str(self.scores[criterion].get(caption, 0)) for caption, _ in pairs)


class Prose(Scripted):
    "Writes no scores."
    def answer(self, prompt): return "a room"


def test_pose_caption_and_picture_of_every_candidate_agree(free, truth):
    student = Scripted({"turn left 18 degrees": 9, "turn right 9 degrees": 8}, {"turn left 9 degrees": 9, "turn right 27 degrees": 8})
    for config in (ViewSearch(), ViewSearch(batch_paths=False)):
        _search_views(_Search(free, student, truth, config))
    assert len(student.views) > 30
    for caption, image in student.views:  # the caption alone, read as a motion, gives the picture
        actions = parse_actions(caption.replace(", and then ", "; "))
        assert (truth.imagine(free.scene, [plan(actions)], 0)[0].images[-1] == image).all(), caption


def test_a_rejected_path_leaves_the_others_in_place(items):
    "Views keep their own captions when the world model rejects a path between two others."
    strict, rejected = load_teacher("simulator"), 0
    for item in items[:8]:
        search, paths = _Search(item, None, strict), [(Action(kind, 2.0),) for kind in ("right", "forward", "left", "backward")]
        views = _imagine_paths(search, paths)
        rejected += search.cost["rejected"]
        assert len(views) == 3 * search.cost["rollouts"] == 3 * (4 - search.cost["rejected"])
        for view in views:
            assert (strict.imagine(item.scene, [plan(view.actions)], 0)[0].images[-1] == view.image).all()
    assert rejected > 0


class Probable(Scripted):
    "As likely to write the scores of its list, one view at a time, as a student is of its favourite digit."
    def reply(self, prompts, max_new_tokens, first_words=()):
        if not first_words: return super().reply(prompts, max_new_tokens)
        assert max_new_tokens == 1 and all(sum(str(piece).startswith("Imagined image") for piece in prompt.pieces) == 1 for prompt in prompts)
        texts = [self.answer(prompt) for prompt in prompts]
        return [Reply("", 7, tuple(.5 if word == text.split()[-1] else .05 for word in first_words)) for text in texts]


def test_likeliest_scores_are_those_of_a_list_and_none_is_guessed(free, truth):
    scores = dict(exploration={"turn left 18 degrees": 9}, helpful={"turn left 9 degrees": 8, "turn left 45 degrees": 9})
    searches = [_Search(free, student(**scores), truth, ViewSearch(depth=2, likeliest_scores=alone)) for student, alone in ((Scripted, False), (Probable, True))]
    listed, alone = ([view.caption for view in _search_views(search)] for search in searches)
    assert listed == alone and len(alone) == 2
    assert searches[1].cost["calls"] > searches[0].cost["calls"] and searches[1].cost["guessed"] == 0


@given(st.lists(ACTIONS, min_size=1, max_size=4))
@settings(max_examples=50, deadline=None)
def test_views_lie_where_their_actions_lead(path):
    poses, steps = keyframe_poses(_path_trajectory(tuple(path), 3)), _path_steps(tuple(path), 3)
    assert len(poses) == 3 and np.allclose(poses, [plan(actions).poses[-1] for actions in steps])
    assert format_actions(merge_actions(steps[-1])) == format_actions(merge_actions(path))


def test_pruning():
    kinds = lambda history, **limits: [path[-1].kind for path in _extend_path(history, ViewSearch(**limits))]
    left, forward = Action("turn_left", 36), Action("forward", .75)
    assert kinds(()) == ["forward", "turn_left", "turn_right"]
    assert kinds((Action("turn_left", 27),)) == ["forward", "turn_left"]  # not straight back
    assert kinds((left,)) == ["forward"]  # 36 + 27 > 60
    assert kinds((forward,)) == ["forward", "turn_left", "turn_right"]
    assert kinds((forward,), max_move=1.4) == ["turn_left", "turn_right"]
    assert kinds((left, Action("forward", .25))) == ["forward", "turn_left", "turn_right"]  # only the last action counts


def test_thresholds_limits_and_ties():
    views = list("abcdef")
    assert _best_views(views, [9, 7, 8, 9, 3, 8], 8, 3) == ["a", "d", "c"] and _best_views(views, [0] * 6, 8, 3) == []


def test_it_stops_when_nothing_is_worth_a_further_step(free, truth):
    search = _Search(free, Scripted(helpful={"turn left 9 degrees": 9}), truth)
    assert [view.caption for view in _search_views(search)] == ["turn left 9 degrees"]
    assert search.cost["steps"] == 1 and search.cost["calls"] == 2


def test_depth_beams_and_candidates_bound_the_cost(free, truth):
    eager = {f"turn left {d} degrees": 9 for d in range(9, 200, 9)} | {"move forward 0.25 meters": 9}
    for depth in (1, 2, 3):
        search = _Search(free, Scripted(eager, eager), truth, ViewSearch(depth=depth, num_top_candidates=2))
        assert len(_search_views(search)) <= 2 * depth
        assert search.cost["steps"] == depth and search.cost["calls"] == 2 * depth - 1
        assert search.cost["rollouts"] <= 3 + 6 * (depth - 1)


def test_unreadable_scores_are_guessed_from_the_seed(free, truth):
    for text, n in (("", 1), ("9 9", 2), ("9, 9", 3), ("a, b", 2)): assert _read_scores(text, n) is None
    assert _read_scores("I think.\nOutput: 1,2, 9", 3) == [1, 2, 9]
    answer = lambda **options: _answer_with_search(_Search(free, Prose(), truth, ViewSearch(**options)), ROOMS)
    first, again, other = (answer(guessed_range=(0, 9), seed=seed) for seed in (0, 0, 1))
    assert first["evidence"] == again["evidence"] != other["evidence"] and first["guessed"] >= 1
    assert answer(max_tries=3)["calls"] == 7  # three tries for each of two lists, and the answer
    assert answer()["evidence"] == []  # guesses of at most 5 pass no threshold


def test_without_evidence_it_is_the_benchmarks_own_prompt(free, truth):
    plain, helped = Scripted(), Scripted(helpful={"turn left 9 degrees": 9})
    for student in (plain, helped): _answer_with_search(_Search(free, student, truth, ViewSearch(depth=1)), ROOMS)
    own = ROOMS.prompt(free)
    assert plain.final[0].system == ROOMS.system(free)
    assert all(a is b or (np.asarray(a) == np.asarray(b)).all() for a, b in zip(plain.final[0].pieces, own, strict=True))
    pieces = helped.final[0].pieces
    assert len(pieces) == len(own) + 3 and pieces[-1] == own[-1] and "imagined views" in helped.final[0].system


def test_a_question_without_a_picture_is_an_error():
    nothing = Item("1", "object_counting", "How many?", (), "3")
    with pytest.raises(ValueError, match="neither a picture nor a video"): _scene_of_item(nothing, ViewSearch())


def test_a_picture_without_a_camera_gets_the_default_one():
    scene = _scene_of_item(Item("1", "camera", "How?", ("a", "b"), "a", images=(np.zeros((30, 40, 3), np.uint8),)), ViewSearch(fov_deg=90))
    assert np.allclose(scene.K, [[20, 0, 20], [0, 20, 15], [0, 0, 1]]) and scene.depth is None


def test_killed_and_resumed(items, truth, tmp_path):
    items = items[:10]
    class Dies(Scripted):
        def answer(self, prompt):
            if len(self.final) == 4: raise KeyboardInterrupt
            return super().answer(prompt)
    config, path = ViewSearch(depth=2), tmp_path / "a.jsonl"
    scores = dict(exploration={"turn left 9 degrees": 9}, helpful={"turn right 9 degrees": 9})
    whole = ask_with_search(Scripted(**scores), truth, "rooms", items, tmp_path / "whole.jsonl", config)
    with pytest.raises(KeyboardInterrupt): ask_with_search(Dies(**scores), truth, "rooms", items, path, config)
    assert 0 < path.read_text().count("\n") < len(items)
    again = ask_with_search(Scripted(**scores), truth, "rooms", items, path, config)
    assert without_time(again) == without_time(whole) and path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_the_answer_may_be_the_likelier_choice(items, truth):
    class Chooses(Scripted):
        def choose(self, prompts, choices):
            self.offered = choices
            return [Reply(own[1], 1, (.2, .8)) for own in choices]
    student, items = Chooses(), [item for item in items if item.choices][:2]
    rows = ask_with_search(student, truth, "rooms", items, config=ViewSearch(depth=1), choose=True)
    assert [row["response"] for row in rows] == [item.choices[1] for item in items] and rows[0]["probabilities"][items[0].choices[1]] == .8
    with pytest.raises(ValueError, match="take the engine transformers"): ask_with_search(Scripted(), truth, "rooms", items, choose=True)


def test_the_cost_of_a_question(items, truth):
    config = ViewSearch(depth=1, guessed_range=(0, 9))
    searched = ask_with_search(Prose(), truth, "rooms", items[:3], config=config)
    alone, cost = search_cost(ask_benchmark(Prose(), "rooms", items[:3])), search_cost(searched)
    assert alone["calls"] == 1 and alone["rollouts"] == alone["views"] == alone["guessed"] == 0 < alone["seconds"]
    assert cost["calls"] == 2 and cost["guessed"] == 1 and cost["tokens"] == 14 and cost["seconds"] > 0
    assert cost["rollouts"] + cost["rejected"] == 3 and cost["views"] == 3 * cost["rollouts"]
    assert np.isnan(search_cost(without_time(searched))["seconds"])  # a file holds no times


def test_a_video_is_searched_from_the_frame_that_is_named(tmp_path, monkeypatch):
    "The scorer and the answerer see the whole video, the world model one of its frames; each video is decoded once."
    import cv2
    opened, reader = [], cv2.VideoCapture
    monkeypatch.setattr(cv2, "VideoCapture", lambda path: opened.append(path) or reader(path))
    path, place = tmp_path / "a.mp4", (48, 48)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 24, place)
    for value in np.linspace(0, 240, 12).astype(np.uint8): writer.write(np.full((*place, 3), value, np.uint8))
    writer.release()
    class Dolly:  # a world model that shows where it started
        name = "dolly"
        def imagine(self, scene, trajectories, seed=0):
            return [type("Rollout", (), dict(actions=t.actions, images=[scene.image] * len(t.keyframes)))() for t in trajectories]
    item = lambda i: Item(str(i), "object_counting", "How many chairs?", (), "3", video=str(path), facts=dict(scene_id="a"))
    vsi, seen = open_benchmark("vsibench"), {}
    for start in (0., 1.):
        student = Scripted(helpful={"turn left 9 degrees": 9}, text="3")
        rows = ask_with_search(student, Dolly(), vsi, [item(0), item(1)], config=ViewSearch(depth=1, start=start), frames=6)
        assert [row["evidence"] for row in rows] == [["turn left 9 degrees"]] * 2
        assert [piece.shape for piece in student.final[0].pieces if not isinstance(piece, str)] == [(6, 48, 48, 3), (48, 48, 3)]
        seen[start] = float(student.views[0][1].mean())
    assert seen[0.] < 20 and seen[1.] > 220 and opened == [str(path)] * 2  # once in each search


def test_a_scorer_of_its_own_scores_and_the_student_answers(items, truth, free, tmp_path):
    scorer, student = Scripted(helpful={"turn left 9 degrees": 9}), Scripted(text="right")
    scorer.key = lambda settings: "another"
    rows = ask_with_search(student, truth, "rooms", [free], config=ViewSearch(depth=1), scorer=scorer)
    assert rows[0]["response"] == "right" and rows[0]["evidence"] == ["turn left 9 degrees"] and rows[0]["calls"] == 2
    assert not student.views and not scorer.final and scorer.views


def test_questions_of_other_kinds_are_answered_without_views(items, truth):
    kind = items[0].kind
    rows = ask_with_search(Scripted(), truth, "rooms", items, config=ViewSearch(depth=1, kinds=(kind,)))
    assert {row["kind"] for row in rows if "rollouts" in row} == {kind} != {row["kind"] for row in rows}
    assert all(row["calls"] == 1 and row["evidence"] == [] for row in rows if row["kind"] != kind)


def test_a_camera_that_looks_down_moves_level():
    level, down = (_path_trajectory((Action("turn_left", 90), Action("forward", 2)), 2, pitch) for pitch in (0, -30))
    tilt = plan([]).poses[0].copy()
    c, s = np.cos(np.radians(-30)), np.sin(np.radians(-30))
    tilt[1:3, 1:3] = (c, -s), (s, c)  # the first camera in a level frame
    assert np.allclose(tilt @ down.poses, level.poses @ tilt) and (down.poses[0] == np.eye(4)).all()
    assert down.keyframes == level.keyframes and down.actions == level.actions


def test_all_calls_are_kept_on_one_page(items, truth, tmp_path):
    student = Scripted(helpful={"turn left 9 degrees": 9}, text="<left>")
    for calls in ("a", "b"):  # the second run finds all answers in the file, and the page is what it was
        ask_with_search(student, truth, "rooms", items[:3], tmp_path / "a.jsonl", ViewSearch(depth=1, keep=2), calls=tmp_path / "calls")
        pages = sorted((tmp_path / "calls").glob("*.html"))
        assert len(pages) == 2 and all(page.read_text().count("<h3>") == 2 for page in pages)
    text = _calls_page(tmp_path / "calls", "all").read_text()
    assert text.count("<details>") == 2 and text.count("<h3>helpful</h3>") == 2 and "&lt;left&gt;" in text and "Imagined image of index 0" in text


def test_only_pictures_without_a_camera_are_tilted(free):
    asked = []
    class Recorder:
        name = "recorder"
        def imagine(self, scene, trajectories, seed=0): return asked.append(trajectories) or []
    plain = Item("1", "camera", "How?", ("a", "b"), "a", images=(np.zeros((30, 40, 3), np.uint8),))
    for item in (free, plain): _imagine_paths(_Search(item, None, Recorder(), ViewSearch(pitch_deg=-20)), _extend_path((), ViewSearch()))
    level, tilted = (trajectories[0].poses[-1] for trajectories in asked)
    assert level[1, 3] == 0 and tilted[1, 3] < 0 and np.isclose(np.linalg.norm(level[:3, 3]), np.linalg.norm(tilted[:3, 3]))
