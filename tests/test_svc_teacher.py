"The generative teacher: windows, units, conventions, its training, and the way from its rollouts to questions."
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st

from world2vlm.core.actions import parse_actions, plan
from world2vlm.core.camera import intrinsics
from world2vlm.scenes.room import room_scenes
from world2vlm.teachers.svc.cameras import pluecker
from world2vlm.teachers.svc.teacher import _pack_windows, _rollout_seed, _subdivide_path, _metres_per_unit
from world2vlm.teachers.svc.training import SVCTraining, _Windows, _small_unet, _small_pipeline, train_teacher, _training_window
from world2vlm.tasks.tasks import TASKS
from world2vlm.core.records import transitions_of
from world2vlm.core.records import keyframe_poses
from world2vlm.teachers.base import load_teacher
from world2vlm.teachers.reprojection import reproject, fill_smooth

TOY = SVCTraining(widths=(32, 64), attention=(False, True), head=16, views=4, batch_size=1, steps=6, workers=0, save_every=2, check_every=6, check_rooms=1, sample_steps=2, temperature=1.0, bf16=False)


@given(st.integers(0, 200), st.integers(1, 30))
def test_every_view_is_in_one_window(views, most):
    windows = _pack_windows(views, most)
    assert sorted(np.concatenate([*windows, []]).astype(int)) == list(range(views))
    assert all(0 < len(w) <= most for w in windows) and len(windows) == -(-views // most)


@given(st.integers(33, 2000), st.integers(33, 2000), st.sampled_from([8, 64]), st.sampled_from([0, 576]))
def test_sizes_are_multiples_and_keep_the_shape(width, height, multiple, short):
    w, h = _subdivide_path((width, height), multiple, short)
    scale = short / min(width, height) if short else 1
    assert w % multiple == h % multiple == 0 and w > 0 and h > 0
    assert all(abs(a - max(multiple, b * scale)) <= multiple / 2 + 1e-6 for a, b in ((w, width), (h, height)))


def test_a_known_turn_and_a_known_move_in_rays():
    "After `turn right 30 degrees` the middle ray points to the right (+x) in the anchor's frame; after a move forward it starts ahead (+z)."
    K = np.diag([1 / 64, 1 / 64, 1]) @ intrinsics(64, 64, 90)
    at = lambda text: pluecker(np.concatenate([np.eye(4)[None], keyframe_poses(plan(parse_actions(text)))]), K, 15, 15)[1]
    np.testing.assert_allclose(at("turn right 30 degrees")[:3, 7, 7], [.5, 0, np.sqrt(3) / 2], atol=1e-6)
    np.testing.assert_allclose(at("move forward 0.5 meters")[:3, 7, 7], [0, 0, 1], atol=1e-6)
    ray = at("move forward 0.5 meters")[:, 7, 14]  # a ray to the right: its moment is origin x direction
    np.testing.assert_allclose(ray[3:], np.cross([0, 0, .5], ray[:3]), atol=1e-6)
    assert ray[0] > 0 and ray[4] > 0


def test_units():
    scene = next(room_scenes(1, seed=4))
    far = replace(scene, depth=scene.depth * 2)
    assert _metres_per_unit(far)[0] == pytest.approx(_metres_per_unit(scene)[0] / 2) and _metres_per_unit(scene)[1] is False
    assert _metres_per_unit(replace(scene, depth=np.zeros_like(scene.depth))) == (1.0, True)
    assert len({_rollout_seed(s, n, w) for s in range(3) for n in ("a", "b") for w in range(3)}) == 18


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return train_teacher(TOY, str(tmp_path_factory.mktemp("svc") / "teacher"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    "As the released model: no gain, no metres."
    config, out = replace(TOY, gain=0.0, per_metre=0.0), tmp_path_factory.mktemp("svc") / "plain"
    _small_pipeline(_small_unet(config), config).save_pretrained(out)
    return out


def test_trained_weights_open_and_teach(made, plain):
    "From a training to questions: evidence is transport, of nominal lengths nothing is asked but turns, a blocked way is refused."
    scene = next(room_scenes(1, seed=4))
    teacher = load_teacher("svc", checkpoint=str(made))
    ways = [plan(parse_actions(text)) for text in ("turn left 20 degrees; move forward 0.3 meters", "move forward 0.3 meters", "turn right 20 degrees", "move forward 9 meters")]
    refused, asked, rng = [], Counter(), np.random.default_rng(0)
    rollouts = teacher.imagine(scene, ways, seed=3, reject=lambda name, reason: refused.append(reason))
    assert [r.actions for r in rollouts] == [tuple(w.actions) for w in ways[:3]] and refused[0].startswith("collision")
    for t in (t for r in rollouts for t in transitions_of(scene, r)):
        for task in TASKS.values(): asked.update((e.task, e.evidence) for e in task.derive(t, rng))
    assert {"A1", "A2", "A3"} <= {task for task, _ in asked} and {evidence for _, evidence in asked} == {"transport"}
    bare = replace(scene, depth=None)
    nominal = load_teacher("svc", checkpoint=str(plain)).imagine(bare, ways[:3], seed=3)
    few = {e.task for r in nominal for t in transitions_of(bare, r) for task in TASKS.values() for e in task.derive(t, rng)}
    assert all(r.fidelity["nominal"] for r in nominal) and "A2" in few and not few & {"A1", "A3"}
    refused.clear()
    turns = load_teacher("svc", checkpoint=str(made)).imagine(bare, ways[:3], seed=3, reject=lambda name, reason: refused.append(reason))
    assert [r.actions for r in turns] == [tuple(ways[2].actions)] and all(why.startswith("no depth") for why in refused) and len(refused) == 2


def test_a_network_that_says_nothing_leaves_the_carried_anchor(tmp_path):
    "What a checkpoint with a gain makes is added to the anchor carried by its depth."
    import torch
    unet = _small_unet(TOY)
    torch.nn.init.zeros_(unet.conv_out.weight), torch.nn.init.zeros_(unet.conv_out.bias)
    _small_pipeline(unet, TOY).save_pretrained(tmp_path)
    scene, ways = next(room_scenes(1, seed=4)), [plan(parse_actions(text)) for text in ("turn left 20 degrees", "move forward 0.3 meters; turn right 20 degrees")]
    for rollout in load_teacher("svc", checkpoint=str(tmp_path), detail=0.0).imagine(scene, ways):
        for pose, view in zip(keyframe_poses(rollout), rollout.images):
            assert abs(reproject(scene.image, scene.K, pose, scene.depth, fill_smooth)[0].astype(int) - view).max() <= 1


def test_a_gain_needs_the_carried_anchor(made):
    with pytest.raises(ValueError, match="carried: this checkpoint .* adds to the anchor"):
        load_teacher("svc", checkpoint=str(made)).pipeline(np.zeros((64, 64, 3), np.uint8), np.eye(4)[None], np.eye(3))


def test_the_shipped_teacher_is_nearer_to_the_truth_than_what_is_had_for_nothing():
    "Rooms of the kind that it never saw; the full figures are those of the stage `fidelity`."
    from world2vlm.dataset.synthesis import Scenes
    from world2vlm.evaluation.teacher_quality import TeacherQuality, scores_by_motion_size, judge_teacher
    for detail in (0.0, 4.0):  # its own guess, and with the detail that it borrows
        config = TeacherQuality(Scenes(first=710_000, n=6, seed=1, per_shard=6), turns=(30,), moves=(0.5,), poses=False, options={"svc": {"detail": detail}})
        for row in scores_by_motion_size(judge_teacher("svc", config)):
            assert all(row["psnr teacher"] > row[f"psnr {name}"] for name in ("copy", "without depth"))
            assert row["unseen teacher"] > row["unseen mirrored in"]


def test_borrowed_detail_is_fine_and_only_where_nothing_was_seen():
    import cv2
    from world2vlm.teachers.svc.teacher import _warp_to_views, _borrow_detail
    scene = next(room_scenes(1, seed=4))
    [carried], [unseen] = _warp_to_views(scene, plan(parse_actions("turn left 40 degrees")).poses[-1:], scene.size)
    view = _borrow_detail(carried, carried, unseen, 4.0)
    assert (view == carried)[~unseen].all() and (view != carried)[unseen].any()
    rim = unseen & (cv2.blur(unseen.astype(float), (3, 3)) < 1)
    assert abs(view.astype(int) - carried)[rim].mean() < abs(view.astype(int) - carried)[unseen & ~rim].mean() / 2
    coarse = [cv2.GaussianBlur(image.astype(float), (0, 0), 12) for image in (view, carried)]
    assert abs(coarse[0] - coarse[1]).max() < 12 < abs(view.astype(int) - carried).max()


def test_same_seed_same_views(made):
    scene, ways = next(room_scenes(1, seed=4)), [plan(parse_actions(text)) for text in ("turn left 20 degrees", "turn right 30 degrees")]
    teacher = load_teacher("svc", checkpoint=str(made), steps=2)
    a, b, c = (teacher.imagine(scene, ways, seed=seed)[1].images for seed in (1, 1, 2))
    assert (a == b).all() and (a != c).any()


def test_shipped_weights_are_safetensors_in_half_precision(made):
    from safetensors import safe_open
    files = list((made / "unet").glob("*.safetensors"))
    assert files and not list(made.rglob("*.bin")) and not list(made.rglob("*.pt")) and not (made / "checkpoints").exists()
    with safe_open(files[0], "pt") as f: assert {str(f.get_tensor(k).dtype) for k in f.keys()} == {"torch.float16"}


def test_windows_depend_on_their_number():
    a, b, c = _training_window(5, TOY), _training_window(5, TOY), _training_window(6, TOY)
    assert (a["images"] == b["images"]).all() and (a["images"] != c["images"]).any() and (a["poses"][0] == np.eye(4)).all()
    assert {"images", "carried", "unseen", "poses"} == set(a) and (a["carried"][0] == a["images"][0]).all() and not a["unseen"][0].any()
    steps = [_Windows(TOY)[i] for i in range(12)]
    views = {images.shape[1] for images, *_ in steps}
    assert views <= {2, 3, 4} and len(views) > 1 and len({seed for *_, seed in steps}) == 12
    assert TOY.echo == 2 and all((a[0] == b[0]).all() for a, b in zip(steps[::2], steps[1::2]))


SCRIPT = "import json, sys; from world2vlm.svc_training import Training, train; c = json.loads(sys.argv[1]); train(Training(**{k: tuple(v) if isinstance(v, list) else v for k, v in c.items()}), sys.argv[2])"


def test_killed_and_resumed_is_undisturbed(made, tmp_path):
    "kill -9 after a checkpoint, run again: the losses of a run that nobody disturbed."
    out = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, json.dumps(asdict(TOY)), str(out)], env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True)
    while not (out / "checkpoints" / "2" / "log.json").exists():
        assert process.poll() is None, process.stderr.read()[-2000:]
        time.sleep(.002)
    process.send_signal(signal.SIGKILL), process.wait()
    assert not (out / "model_index.json").exists()
    losses = lambda folder: [json.loads(line)["loss"] for line in (Path(folder) / "log.jsonl").read_text().splitlines()]
    np.testing.assert_allclose(losses(train_teacher(TOY, str(out))), losses(made), rtol=1e-4)
