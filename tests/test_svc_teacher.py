"The generative teacher: windows, units, conventions, its training, and the questions from its rollouts."
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st

from world2vlm.core.actions import parse_actions, plan
from world2vlm.core.camera import intrinsics
from world2vlm.scenes.room import room_scenes
from world2vlm.teachers.svc.cameras import pluecker
from world2vlm.teachers.svc.teacher import _add_mirrored_detail, _model_size, _pack_windows, _rollout_seed, _units_per_metre, _warp_to_views
from world2vlm.teachers.svc.training import _Batch, _loss, _sample_scores, _small_heads, _small_pipeline, _small_scheduler, _small_unet, _to_tensors
from world2vlm.teachers.svc.training import SVCTraining, _training_noise, _training_window, train_teacher, _WindowDataset
from world2vlm.tasks.tasks import TASKS
from world2vlm.core.records import keyframe_poses, transitions_of
from world2vlm.teachers.base import load_teacher
from world2vlm.teachers.reprojection import reproject, fill_smooth

TOY = SVCTraining(block_out_channels=(32, 64), attention_levels=(False, True), attention_head_dim=16, views=4, batch_size=1, steps=6, workers=0, save_every=2, check_every=6, check_rooms=1,
                  num_inference_steps=2, temperature=1.0, bf16=False)


@given(st.integers(0, 200), st.integers(1, 30))
def test_every_view_is_in_a_single_window(views, max_views):
    windows = _pack_windows(views, max_views)
    assert sorted(np.concatenate([*windows, []]).astype(int)) == list(range(views))
    assert all(0 < len(w) <= max_views for w in windows) and len(windows) == -(-views // max_views)


@given(st.integers(33, 2000), st.integers(33, 2000), st.sampled_from([8, 64]), st.sampled_from([0, 576]))
def test_sizes_are_multiples_and_preserve_the_shape(width, height, multiple, short_side):
    w, h = _model_size((width, height), multiple, short_side)
    scale = short_side / min(width, height) if short_side else 1
    assert w % multiple == h % multiple == 0 and w > 0 and h > 0
    assert all(abs(a - max(multiple, b * scale)) <= multiple / 2 + 1e-6 for a, b in ((w, width), (h, height)))


def test_a_known_turn_and_a_known_move_in_rays():
    "After `turn right 30 degrees` the central ray points to the right (+x) in the anchor's frame; after a move forward it starts ahead (+z)."
    K = np.diag([1 / 64, 1 / 64, 1]) @ intrinsics(64, 64, 90)
    at = lambda text: pluecker(np.concatenate([np.eye(4)[None], keyframe_poses(plan(parse_actions(text)))]), K, 15, 15)[1]
    np.testing.assert_allclose(at("turn right 30 degrees")[:3, 7, 7], [.5, 0, np.sqrt(3) / 2], atol=1e-6)
    np.testing.assert_allclose(at("move forward 0.5 meters")[:3, 7, 7], [0, 0, 1], atol=1e-6)
    ray = at("move forward 0.5 meters")[:, 7, 14]  # a ray to the right: its moment is origin x direction
    np.testing.assert_allclose(ray[3:], np.cross([0, 0, .5], ray[:3]), atol=1e-6)
    assert ray[0] > 0 and ray[4] > 0


def test_units():
    scene = next(room_scenes(1, seed=4))
    distant = replace(scene, depth=scene.depth * 2)
    assert _units_per_metre(distant)[0] == pytest.approx(_units_per_metre(scene)[0] / 2) and _units_per_metre(scene)[1] is False
    assert _units_per_metre(replace(scene, depth=np.zeros_like(scene.depth))) == (1.0, True)
    assert len({_rollout_seed(s, n, w) for s in range(3) for n in ("a", "b") for w in range(3)}) == 18


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train_teacher(TOY, str(tmp_path_factory.mktemp("svc") / "teacher"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    "As the released model: no residual, no metric scale."
    config, out = replace(TOY, residual_scale=0.0), tmp_path_factory.mktemp("svc") / "plain"
    pipeline = _small_pipeline(_small_unet(config), config)
    pipeline.register_to_config(units_per_metre=0.0)  # no training sets this
    pipeline.save_pretrained(out)
    return out


def test_from_training_to_questions(trained, plain):
    "Evidence comes from the warp by depth, nominal lengths allow turns only, a blocked path is rejected."
    scene, rng = next(room_scenes(1, seed=4)), np.random.default_rng(0)
    texts = ("turn left 20 degrees; move forward 0.3 meters", "move forward 0.3 meters", "turn right 20 degrees", "move forward 9 meters")
    trajectories, rejected = [plan(parse_actions(text)) for text in texts], []
    reject = lambda input, reason: rejected.append((input, reason))
    derive = lambda scene, rollouts: [e for r in rollouts for t in transitions_of(scene, r) for task in TASKS.values() for e in task.derive(t, rng)]
    rollouts = load_teacher("svc", checkpoint=str(trained)).imagine(scene, trajectories, seed=3, reject=reject)
    assert [r.actions for r in rollouts] == [tuple(t.actions) for t in trajectories[:3]]
    assert [(input, reason.split(":")[0]) for input, reason in rejected] == [(f"{scene.id}: {texts[3]}", "collision")]
    examples = derive(scene, rollouts)
    assert {"A1", "A2", "A3"} <= {e.task for e in examples} and {e.evidence for e in examples} == {"warped"}
    bare = replace(scene, depth=None)
    nominal = load_teacher("svc", checkpoint=str(plain)).imagine(bare, trajectories[:3], seed=3)
    tasks = {e.task for e in derive(bare, nominal)}
    assert all(r.fidelity["nominal"] for r in nominal) and "A2" in tasks and not tasks & {"A1", "A3"}
    rejected.clear()
    turns = load_teacher("svc", checkpoint=str(trained)).imagine(bare, trajectories[:3], seed=3, reject=reject)
    assert [r.actions for r in turns] == [tuple(trajectories[2].actions)] and turns[0].fidelity["nominal"] == 0, "this checkpoint has metres of its own"
    assert len(rejected) == 2 and all(reason.startswith("no depth") for _, reason in rejected)


def test_an_empty_trajectory_does_not_shift_the_others(plain):
    scene, rejected = next(room_scenes(1, seed=4)), []
    turn, blocked = (plan(parse_actions(text)) for text in ("turn left 20 degrees", "move forward 9 meters"))
    rollouts = load_teacher("svc", checkpoint=str(plain)).imagine(scene, [plan([]), turn, blocked], reject=lambda input, reason: rejected.append(reason.split(":")[0]))
    assert [r.actions for r in rollouts] == [tuple(turn.actions)] and rejected == ["empty", "collision"]


def test_a_zero_output_returns_the_warped_anchor(tmp_path):
    "A checkpoint with a residual_scale adds its output to the anchor warped by its depth."
    import torch
    unet = _small_unet(TOY)
    torch.nn.init.zeros_(unet.conv_out.weight), torch.nn.init.zeros_(unet.conv_out.bias)
    _small_pipeline(unet, TOY).save_pretrained(tmp_path)
    scene, trajectories = next(room_scenes(1, seed=4)), [plan(parse_actions(text)) for text in ("turn left 20 degrees", "move forward 0.3 meters; turn right 20 degrees")]
    rollouts = load_teacher("svc", checkpoint=str(tmp_path), detail_width=0.0).imagine(scene, trajectories)
    assert len(rollouts) == 2
    for rollout in rollouts:
        for pose, view in zip(keyframe_poses(rollout), rollout.images):
            assert abs(reproject(scene.image, scene.K, pose, scene.depth, fill_smooth)[0].astype(int) - view).max() <= 1


def test_a_residual_needs_the_warped_anchor(trained):
    with pytest.raises(ValueError, match="warped: this checkpoint .* adds a residual to the warped anchor"):
        load_teacher("svc", checkpoint=str(trained)).pipeline(np.zeros((64, 64, 3), np.uint8), np.eye(4)[None], np.eye(3))


def test_the_shipped_teacher_is_better_than_the_baselines():
    "Rooms outside its training set; the full figures are those of the stage `teacher_quality`."
    from world2vlm.dataset.synthesis import Scenes
    from world2vlm.evaluation.teacher_quality import TeacherQuality, scores_by_motion_size, evaluate_teacher
    for width in (0.0, 4.0):  # without and with mirrored detail
        config = TeacherQuality(Scenes(first=710_000, n=6, seed=1, per_shard=6), turns=(30,), moves=(0.5,), poses=False, options={"svc": {"detail_width": width}})
        for row in scores_by_motion_size(evaluate_teacher("svc", config)):
            assert all(row["psnr teacher"] > row[f"psnr {name}"] for name in ("copy", "without depth"))
            assert row["unseen teacher"] > row["unseen mirrored in"]


def test_mirrored_detail_is_fine_and_only_in_the_unseen_region():
    import cv2
    scene = next(room_scenes(1, seed=4))
    [warped], [unseen] = _warp_to_views(scene, plan(parse_actions("turn left 40 degrees")).poses[-1:], scene.size)
    view = _add_mirrored_detail(warped, warped, unseen, 4.0)
    assert (view == warped)[~unseen].all() and (view != warped)[unseen].any()
    change, rim = abs(view.astype(int) - warped), unseen & (cv2.blur(unseen.astype(float), (3, 3)) < 1)
    assert change[rim].mean() < change[unseen & ~rim].mean() / 2
    coarse = [cv2.GaussianBlur(image.astype(float), (0, 0), 12) for image in (view, warped)]
    assert abs(coarse[0] - coarse[1]).max() < 12 < change.max()


def test_same_seed_same_views(trained):
    scene, turns = next(room_scenes(1, seed=4)), [plan(parse_actions(text)) for text in ("turn left 20 degrees", "turn right 30 degrees")]
    teacher = load_teacher("svc", checkpoint=str(trained), num_inference_steps=2)
    a, b, c = (teacher.imagine(scene, turns, seed=seed)[1].images for seed in (1, 1, 2))
    assert (a == b).all() and (a != c).any()


def test_shipped_weights_are_safetensors_in_half_precision(trained):
    from safetensors import safe_open
    files = list((trained / "unet").glob("*.safetensors"))
    assert files and not list(trained.rglob("*.bin")) and not list(trained.rglob("*.pt")) and not (trained / "checkpoints").exists()
    with safe_open(files[0], "pt") as f: assert {str(f.get_tensor(k).dtype) for k in f.keys()} == {"torch.float16"}


def test_windows_depend_on_their_number():
    a, b, c = _training_window(5, TOY), _training_window(5, TOY), _training_window(6, TOY)
    assert (a["images"] == b["images"]).all() and (a["images"] != c["images"]).any() and (a["poses"][0] == np.eye(4)).all()
    assert {"images", "warped", "unseen", "poses", "targets"} == set(a) and (a["warped"][0] == a["images"][0]).all() and not a["unseen"][0].any()
    steps = [_WindowDataset(TOY)[i] for i in range(12)]
    views = {images.shape[1] for images, *_ in steps}
    assert views <= {2, 3, 4} and len(views) > 1 and len({seed for *_, seed in steps}) == 12
    assert TOY.data_echo == 2 and all((a[0] == b[0]).all() for a, b in zip(steps[::2], steps[1::2]))


SCRIPT = """
import ast, sys
from world2vlm.teachers.svc.training import SVCTraining, train_teacher
train_teacher(SVCTraining(**ast.literal_eval(sys.argv[1])), sys.argv[2])
"""


@pytest.mark.proof
def test_a_killed_run_resumes_with_the_same_losses(trained, tmp_path):
    "kill -9 after a checkpoint, run again: the losses of an uninterrupted run."
    out = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, repr(asdict(TOY)), str(out)], env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True)
    while not (out / "checkpoints" / "2" / "log.json").exists():
        assert process.poll() is None, process.stderr.read()[-2000:]
        time.sleep(.002)
    process.send_signal(signal.SIGKILL), process.wait()
    assert not (out / "model_index.json").exists()
    losses = lambda folder: [json.loads(line)["loss"] for line in (Path(folder) / "log.jsonl").read_text().splitlines()]
    np.testing.assert_allclose(losses(train_teacher(TOY, str(out))), losses(trained), rtol=1e-4)


# Beside the views: class, depth, sharpness, and where a sample starts

def toy_batch(config, number=5, **changes):
    tensors = _to_tensors([_training_window(number, config)], config)
    return _Batch(*tensors, *_training_noise(3, config, tensors[0].shape))._replace(**changes)


def test_targets_are_those_of_the_simulator():
    from world2vlm.scenes.room import Room
    from world2vlm.teachers.svc.dense import _KINDS
    scene = next(room_scenes(1, seed=4))
    room = Room(scene.room.seed)
    view = room.render(scene.room.pose, scene.K, scene.size)
    from world2vlm.teachers.svc.dense import _dense_targets
    [(kinds, depth)] = _dense_targets([view], room.instances, 4)
    for y, x in np.ndindex(16, 16):
        i = view.ids[4 * y + 2, 4 * x + 2]
        assert _KINDS[int(kinds[y, x])] == (room.instances[i].split()[1] if i else "structure")
        assert depth[y, x] == pytest.approx(np.log(view.depth[4 * y + 2, 4 * x + 2]), abs=1e-5)
    assert len(set(kinds.ravel())) > 2


def test_windows_begin_as_a_sample_does():
    "The network reads nothing but its conditioning there; with a temperature, noise of the largest level."
    import torch
    config = replace(TOY, first_step=1.0, temperature=0.0, dense_weight=0.0, sharpness_weight=0.0)
    batch, inputs = toy_batch(config), []
    assert batch.starts.all() and not toy_batch(replace(config, first_step=0.0)).starts.any() and not toy_batch(replace(config, prediction_type="epsilon")).starts.any()
    unet = _small_unet(config)
    unet.register_forward_pre_hook(lambda _, given: inputs.append(given[:2]))
    for temperature in (0.0, 1.0):
        _loss(unet, _small_scheduler(config), batch._replace(has_input=torch.tensor([True])), replace(config, temperature=temperature))
    (still, level), (noisy, _) = inputs
    assert (still[1:, :48] == 0).all() and (still[0, :48] == 0).all() and (level == 999).all()  # the residual of the input view is zero
    assert .8 < noisy[1:, :48].std() < 1.2
    pipe, seen = _small_pipeline(unet, config), []
    pipe.unet.register_forward_pre_hook(lambda _, given: seen.append(given[:2]))
    window = _training_window(5, config)
    pipe(window["images"][0], window["poses"][1:] * np.array([1, 1, 1, config.units_per_metre]), np.diag([1 / 64, 1 / 64, 1]) @ intrinsics(64, 64, 90),
         num_inference_steps=1, cfg=1.0, temperature=0.0, warped=(window["warped"][1:], window["unseen"][1:]))
    torch.testing.assert_close(seen[0][0], still, atol=1e-5, rtol=0)  # what the first step of a sample is given


def test_heads_reach_the_network_and_not_the_checkpoint(trained):
    import torch
    from safetensors import safe_open
    config = replace(TOY, dense_weight=1.0, sharpness_weight=0.0)
    unet, heads = _small_unet(config), _small_heads(config)
    batch = toy_batch(config)
    loss = _loss(unet, _small_scheduler(config), batch, config, heads) - _loss(unet, _small_scheduler(config), batch, config)
    loss.backward()
    assert loss > 0 and heads.read.weight.grad.abs().sum() > 0 and unet.conv_in.weight.grad.abs().sum() > 0
    names = {name for path in (trained / "unet").glob("*.safetensors") for name in safe_open(path, "pt").keys()}
    assert names == set(_small_unet(TOY).state_dict())


def test_class_and_depth_are_learned():
    "On one window, in some steps."
    import torch
    config = replace(TOY, dense_weight=1.0, sharpness_weight=0.0, first_step=1.0, temperature=0.0)
    unet, heads, batch = _small_unet(config), _small_heads(config), toy_batch(config)
    optimizer, losses = torch.optim.AdamW([*unet.parameters(), *heads.parameters()], 3e-3), []
    for _ in range(12):
        loss = _loss(unet, _small_scheduler(config), batch, config, heads)
        optimizer.zero_grad(), loss.backward(), optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < .8 * losses[0]


def test_sharpness_counts_only_unseen_detail():
    import torch
    from world2vlm.teachers.svc.dense import _sharpness_loss
    rng = torch.Generator().manual_seed(0)
    truth, unseen = torch.rand(2, 3, 32, 32, generator=rng) - .5, torch.zeros(2, 1, 32, 32)
    unseen[..., 16:] = 1
    blurred, other = truth.clone(), truth.flip(-2)
    blurred[..., 16:] = 0
    assert _sharpness_loss(truth, truth, unseen) == 0 and _sharpness_loss(blurred, truth, unseen) > 1 > .3 > _sharpness_loss(other, truth, unseen)
    assert _sharpness_loss(blurred, truth, 0 * unseen) == 0
    half = truth.clone().requires_grad_()
    _sharpness_loss(half / 2, truth, unseen).backward()
    assert half.grad[..., :14].abs().sum() == 0 < half.grad[..., 20:].abs().sum() and torch.isfinite(half.grad).all()


def test_validation_sees_blur_and_sharpness():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 255, (1, 3, 32, 32, 3), dtype=np.uint8)
    unseen = np.zeros((1, 3, 32, 32), bool)
    unseen[..., 16:] = True
    blur = np.where(unseen[..., None], 127, truth).astype(np.uint8)
    scores = _sample_scores(np.stack([truth, blur, truth], 1), unseen)
    assert scores["psnr"] > 70 > scores["psnr_warped"] > scores["unseen_warped"] and scores["sharpness"] == 1 and scores["unseen"] > 70
    assert _sample_scores(np.stack([truth, truth, blur], 1), unseen)["sharpness"] < .01
