"Open world models as teachers: where weights are found, what reaches each library, the second stage, the process of WorldPlay, calibration."
import json, os, shutil, subprocess, sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st

from toy_teachers import camera_of_rays, save_toy_refiner, toy_cosmos, toy_sana, toy_worldplay
from world2vlm.core.actions import format_actions, parse_actions, plan
from world2vlm.core.camera import Action, intrinsics, move, yaw
from world2vlm.core.config import ConfigError, repo_root
from world2vlm.core.records import keyframe_poses
from world2vlm.scenes.panoramas import panorama_scenes
from world2vlm.scenes.room import room_scenes
from world2vlm.teachers import cosmos3, sana_wm, worldplay
from world2vlm.teachers.base import load_teacher
from world2vlm.teachers.calibration import calibrate_teacher, Calibration
from world2vlm.teachers.checkpoints import _place
from world2vlm.teachers.svc.cameras import pluecker
from world2vlm.teachers.video import _dense_path, _keyframe_views, _video_size

ROOT = repo_root()


@pytest.fixture(scope="module")
def scene(): return next(room_scenes(1, seed=4, size=(96, 64)))


@pytest.fixture(scope="module")
def sana(tmp_path_factory): return toy_sana(tmp_path_factory.mktemp("sana"))


@pytest.fixture(scope="module")
def cosmos(tmp_path_factory): return toy_cosmos(tmp_path_factory.mktemp("cosmos"))


# Paths and sizes of videos

actions = st.lists(st.builds(Action, st.sampled_from(["forward", "left", "turn_left", "turn_right"]), st.floats(0, 3)), min_size=1, max_size=4)


@given(actions, st.floats(.02, .5), st.floats(.5, 10), st.sampled_from([1, 4, 8]))
def test_a_dense_path_is_the_same_motion_in_short_steps(actions, move_step, turn_step, multiple):
    trajectory = plan(actions)
    path = _dense_path(trajectory, move_step, turn_step, multiple)
    np.testing.assert_allclose(keyframe_poses(path), keyframe_poses(trajectory), atol=1e-9)
    assert len(path) % multiple == 1 % multiple and len(path) > 1 and all(k % multiple == 0 for k in path.keyframes)
    steps = np.linalg.inv(path.poses[:-1]) @ path.poses[1:]
    assert np.linalg.norm(steps[:, :3, 3], axis=1).max() <= move_step + 1e-9
    assert np.degrees(np.arccos(np.clip((np.trace(steps[:, :3, :3], axis1=1, axis2=2) - 1) / 2, -1, 1))).max() <= turn_step + 1e-5


@given(st.integers(33, 2000), st.integers(33, 2000))
def test_video_sizes_are_near_the_training_and_show_the_whole_picture(width, height):
    size = _video_size((width, height), (1280, 704), 32)
    assert size == (1280, 704) or all(side % 32 == 0 for side in size)
    stretch = size[0] / size[1] / (width / height)
    if 1 / 3 < width / height < 3: assert .9 < stretch < 1.1 and .9 < size[0] * size[1] / (1280 * 704) < 1.1
    tier = cosmos3._canvas_size((width, height), 480)
    assert all(side % 16 == 0 for side in tier) and tier[0] * tier[1] <= 640 * 640 * 1.01
    if 1 / 3 < width / height < 3: assert .92 < tier[0] / tier[1] / (width / height) < 1.08


def test_a_keyframe_without_motion_is_the_anchor(scene):
    path = _dense_path(plan(parse_actions("turn left 0 degrees; move forward 0.1 meters")), .05, 1.2, 8)
    views = _keyframe_views(np.zeros((9, 8, 12, 3)), path, scene)
    assert (views[0] == scene.image).all() and not views[1].any()


# Weights

def python(code: str, cwd: Path, **environment) -> subprocess.CompletedProcess:
    variables = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | environment
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, env=variables, capture_output=True, text=True)


OPEN = "from world2vlm.teachers.base import load_teacher; print(load_teacher('svc').pipeline.config.units_per_metre)"


def test_svc_finds_the_weights_of_the_checkout_from_any_folder(tmp_path):
    "Also from inside another project with a params.yaml."
    (tmp_path / "params.yaml").write_text("profile: other\n")
    done = python(OPEN, tmp_path, PYTHONPATH=str(ROOT))
    assert done.returncode == 0 and float(done.stdout) > 0, done.stderr[-1000:]


SHIPPED = "from world2vlm.teachers.svc.teacher import _shipped_checkpoint; print(_shipped_checkpoint())"


def test_an_installed_package_names_what_to_give(tmp_path):
    "As from a wheel: the package alone, without data. In a checkout it finds the weights of that checkout."
    shutil.copytree(ROOT / "world2vlm", tmp_path / "site/world2vlm", ignore=shutil.ignore_patterns("__pycache__"))
    site = dict(PYTHONPATH=str(tmp_path / "site"))
    message = python(SHIPPED, tmp_path, **site).stderr.strip().splitlines()[-1]
    assert all(word in message for word in ("ConfigError", "checkpoint=", "revision=", "world2vlm_svc", "stabilityai/stable-virtual-camera", "data/teacher"))
    assert python(SHIPPED, ROOT / "nbs", **site).stdout.strip() == str(ROOT / "data/teacher")


COMMIT = "0123456789abcdef0123456789abcdef01234567"
HUB = """
from world2vlm.teachers.base import load_teacher
print(load_teacher("svc", checkpoint="someone/svc", revision="COMMIT").pipeline.config.units_per_metre)
load_teacher("svc", checkpoint="someone/svc", revision="f" * 40).pipeline
"""


def test_weights_come_from_the_hub_under_a_commit(tmp_path):
    "From what this machine has stored of it, as without a network."
    shutil.copytree(ROOT / "data/teacher", tmp_path / f"models--someone--svc/snapshots/{COMMIT}")
    done = python(HUB.replace("COMMIT", COMMIT), tmp_path, PYTHONPATH=str(ROOT), HF_HUB_CACHE=str(tmp_path))
    message = done.stderr.strip().splitlines()[-1]
    assert done.stdout and float(done.stdout) > 0, done.stderr[-1500:]
    assert "ConfigError" in message and "'someone/svc' is no folder" in message and "f" * 40 in message and "hf download someone/svc" in message


@pytest.mark.parametrize("name, options", [("sana_wm", {}), ("cosmos3", {"guardrail": False}), ("svc", {"checkpoint": "nobody/svc"})])
def test_a_checkpoint_that_is_not_there_is_one_clear_error(scene, name, options):
    with pytest.raises(ConfigError, match=f"teacher '{name}': .* is no folder here, nor to be had from the hub.*hf download .*checkpoint=.*revision="):
        load_teacher(name, device="cpu", **options).imagine(scene, [plan(parse_actions("turn left 10 degrees"))])


@pytest.mark.parametrize("name, part", [("sana", "transformer"), ("sana", "vae"), ("cosmos", "transformer"), ("cosmos", "vae")])
def test_a_missing_weight_is_an_error(tmp_path, name, part):
    from safetensors.torch import load_file, save_file
    make = {"sana": toy_sana, "cosmos": toy_cosmos}[name](tmp_path)
    [path] = (tmp_path / part).glob("*.safetensors")
    weights = load_file(path)
    lost = sorted(weights)[0]
    del weights[lost]
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(ValueError, match=f"missing: {lost}"): make().pipeline


# SANA-WM: parity with the preprocessing of the library

@pytest.mark.parametrize("keys, text", [
    ("l-16", "turn right 19.2 degrees"), ("j-8", "turn left 9.6 degrees"), ("w-8,d-8", "move forward 0.4 meters; move right 0.4 meters"),
    ("s-8,a-8,l-8,w-8", "move backward 0.4 meters; move left 0.4 meters; turn right 9.6 degrees; move forward 0.4 meters"),
])
@pytest.mark.parametrize("size", [(96, 64), (64, 96)])
def test_sana_receives_what_its_own_preprocessing_makes(sana, keys, text, size):
    "Keys of the library on the left, our motion on the right: equal poses and rays for landscape and portrait."
    from diffusers.pipelines.sana_wm.cam_utils import action_string_to_c2w, prepare_camera
    scene = replace(next(room_scenes(1, seed=4, size=size)), depth=None)
    teacher = sana()
    ours = sana_wm._network_input(teacher, scene, plan(parse_actions(text)))
    poses = action_string_to_c2w(keys)  # 5 cm and 1.2 degrees for each frame
    K = np.tile(np.float32([scene.K[0, 0], scene.K[1, 1], *scene.K[:2, 2]]), (len(poses), 1))
    theirs = prepare_camera(poses, K, target_size=size[::-1], vae_stride=(8, 32, 32))
    np.testing.assert_allclose(ours["rays"], theirs["chunk_plucker"].numpy(), atol=1e-5)
    latents = np.cumsum([int(part.split("-")[1]) // 8 for part in keys.split(",")])  # at the end of each action
    np.testing.assert_allclose(ours["poses"].reshape(-1, 16), theirs["raymap"][latents, :16].numpy(), atol=1e-5)


@pytest.mark.parametrize("tiling", [True, False])
def test_tiles_are_a_setting(sana, tiling):
    vae = sana(tiling=tiling).pipeline.vae
    assert (vae.use_tiling, vae.use_framewise_decoding) == (tiling, tiling)


@pytest.mark.parametrize("device, offload, call", [("cuda", True, "offload to cuda"), ("cuda", False, "to cuda"), ("cpu", True, "to cpu")])
def test_offload_is_for_gpus(device, offload, call):
    calls = []
    class Pipe:
        def to(self, device): calls.append(f"to {device}")
        def enable_model_cpu_offload(self, device): calls.append(f"offload to {device}")
    assert _place(pipe := Pipe(), device, offload) is pipe and calls == [call]


def test_sana_resizes_picture_and_camera_together(sana):
    "A picture of another size than the video: the K of the library's own resize and crop, up to the stretch, is that of ours."
    teacher = sana(width=128, height=64, max_stretch=1.3)
    scene = replace(next(room_scenes(1, seed=4, size=(168, 80))), depth=None)
    given = sana_wm._network_input(teacher, scene, plan(parse_actions("turn left 7.2 degrees")))
    np.testing.assert_allclose(given["K"], np.diag([1 / 168, 1 / 80, 1]) @ scene.K, atol=1e-5)


def test_the_refiner_is_added_by_a_setting_and_its_frames_are_those_of_the_path(sana, tmp_path, scene):
    "It returns a frame less than the first stage; the views must still be those of the keyframes."
    refiner = save_toy_refiner(tmp_path / "refiner")
    plain, refined = sana(), sana(refiner=refiner)
    walk = plan(parse_actions("turn left 7.2 degrees; move forward 0.1 meters"))
    path = _dense_path(walk, plain.move_step, plain.turn_step, 8)
    frames, _ = sana_wm._film(refined, scene, path, seed=3)
    assert len(frames) == len(path)
    whole, latents = refined.refiner_pipeline, []
    refined.__dict__["refiner_pipeline"] = lambda latent, *args, **options: latents.append(latent) or whole(latent, *args, **options)
    frames, _ = sana_wm._film(refined, scene, path, seed=3)
    import torch
    stage_2 = whole(latents[0], refined.prompt, fps=16, generator=after(torch.Generator().manual_seed(3), latents[0]), output_type="latent")
    decoded = whole._decode_latents(stage_2)[0].detach().permute(1, 2, 3, 0).cpu().numpy() / 2 + .5  # all frames, the first with them
    np.testing.assert_allclose(frames[1:], np.clip(decoded[1:], 0, 1), atol=1e-5)
    assert (plain.imagine(scene, [walk])[0].images != refined.imagine(scene, [walk])[0].images).any()


def after(generator, latent):
    "The generator as the first stage leaves it: it drew one noise of the latent's shape."
    import torch
    torch.randn(latent.shape, generator=generator)
    return generator


# Cosmos 3

@given(st.lists(st.tuples(*[st.floats(-60, 60)] * 3, *[st.floats(-2, 2)] * 3), min_size=2, max_size=6))
def test_rows_and_poses_are_inverse_to_each_other(parts):
    from scipy.spatial.transform import Rotation
    poses = np.tile(np.eye(4), (len(parts), 1, 1))
    poses[:, :3, :3], poses[:, :3, 3] = Rotation.from_euler("yxz", [p[:3] for p in parts], degrees=True).as_matrix(), [p[3:] for p in parts]
    poses = np.linalg.inv(poses[0]) @ poses
    rows = cosmos3._pose_rows(poses)
    np.testing.assert_allclose(cosmos3._row_poses(rows), poses, atol=1e-4)
    for before, row, after in zip(poses, rows, poses[1:]):  # T_i step = T_{i+1}, and the step in the frame of camera i
        step = np.eye(4)
        step[:3, 3], step[:3, 0], step[:3, 1], step[:3, 2] = row[:3], row[3:6], row[6:9], np.cross(row[3:6], row[6:9])
        np.testing.assert_allclose(before @ step, after, atol=1e-4)


def test_the_delta_convention_both_ways():
    "Forward after a turn lies on the axis of the camera that has turned; to the right the first column goes to -z."
    path = _dense_path(plan(parse_actions("turn right 90 degrees; move forward 1 meters")), 1, 90, 1)
    rows = cosmos3._pose_rows(path.poses)
    np.testing.assert_allclose(rows[0], [0, 0, 0, 0, 0, -1, 0, 1, 0], atol=1e-6)
    np.testing.assert_allclose(rows[1], [0, 0, 1, 1, 0, 0, 0, 1, 0], atol=1e-6)
    np.testing.assert_allclose(cosmos3._row_poses(rows)[-1][:3, 3], [1, 0, 0], atol=1e-6)  # in the frame of the first camera: right
    inverse = cosmos3._row_poses(cosmos3._pose_rows(np.linalg.inv(path.poses)))
    assert inverse[1][2, 0] > 0 > cosmos3._row_poses(rows)[1][2, 0]  # the inverse convention mirrors the turn


def test_cosmos_receives_all_rows_and_the_whole_picture(cosmos, scene):
    teacher, walk = cosmos(), plan(parse_actions("turn left 7.5 degrees; move forward 0.1 meters"))
    given = cosmos3._network_input(teacher, scene, walk)
    path = _dense_path(walk, teacher.move_step, teacher.turn_step, 4)
    np.testing.assert_allclose(given["rows"][:, :9], cosmos3._pose_rows(path.poses), atol=1e-5)
    assert len(given["rows"]) == len(path) - 1 and not given["rows"][:, 9:].any()
    for size in ((96, 64), (64, 96), (100, 75)):
        shaped = next(room_scenes(1, seed=4, size=size))
        assert cosmos3._network_input(teacher, replace(shaped, depth=None), walk)["size"] == cosmos3._canvas_size(size, 256)


def test_the_prompt_states_the_field_of_view(cosmos, scene):
    teacher, prompts = cosmos(prompt="A room, {fov} degrees wide."), []
    teacher.pipeline.tokenize_prompt = lambda prompt, *args, real=teacher.pipeline.tokenize_prompt, **options: prompts.append(prompt) or real(prompt, *args, **options)
    narrow = replace(scene, K=intrinsics(96, 64, 54))
    [rollout] = teacher.imagine(narrow, [plan(parse_actions("turn left 3 degrees"))])
    assert prompts == ["A room, 54 degrees wide."] and rollout.fidelity["fov_deg"] == pytest.approx(54)


def test_a_second_opinion_has_the_form_of_a_path(cosmos, scene):
    teacher = cosmos(second_opinion=True)
    poses = teacher.estimated_path(np.stack([scene.image] * 6), seed=2)
    assert poses.shape == (6, 4, 4) and np.allclose(poses[:, :3, :3] @ poses[:, :3, :3].transpose(0, 2, 1), np.eye(3)) and (poses[0] == np.eye(4)).all()
    np.testing.assert_array_equal(poses, teacher.estimated_path(np.stack([scene.image] * 6), seed=2))
    fidelity = [r.fidelity for r in teacher.imagine(replace(scene, depth=None), [plan(parse_actions(t)) for t in ("turn left 3 degrees", "move left 0.1 meters")])]
    assert {"inverse rotation", "inverse drift"} <= fidelity[0].keys() and {"inverse scale", "inverse direction"} <= fidelity[1].keys()


@pytest.mark.parametrize("name", ["sana", "cosmos"])
def test_metres_count_where_the_user_says_so(name, request, scene):
    make, photo = request.getfixturevalue(name), replace(scene, depth=None, room=None, instances=None)
    turn = [plan(parse_actions("turn left 3 degrees"))]
    assert make().imagine(photo, turn)[0].fidelity["nominal"] == 0 and make(metric=False).imagine(photo, turn)[0].fidelity["nominal"] == 1


# WorldPlay

def test_worldplay_needs_its_licence_and_a_command(tmp_path):
    with pytest.raises(ConfigError, match="(?s)licence is not accepted.*improve another AI model.*accept_licence: true"): load_teacher("worldplay", command="python")
    with pytest.raises(ConfigError, match="no command"): load_teacher("worldplay", accept_licence=True)
    (tmp_path / "License.txt").write_text("Tencent, section 5: ...")
    with pytest.raises(ConfigError, match="Tencent, section 5"): load_teacher("worldplay", command="python", licence_file=str(tmp_path / "License.txt"))


def test_worldplay_shows_the_licence_when_it_starts(tmp_path, scene, caplog):
    teacher = toy_worldplay(tmp_path)()
    teacher.imagine(scene, [plan(parse_actions("turn left 3 degrees"))])
    teacher.process.close()
    assert "improve another AI model" in caplog.text


@given(st.sampled_from(["forward", "backward", "left", "right"]), st.sampled_from(["turn_left", "turn_right", None]), st.floats(.01, .08), st.floats(.2, 3))
def test_action_labels(kind, turn, metres, degrees):
    "9 t + r of the step; mirrored labels would be those of the opposite turn."
    step = Action(kind, metres).pose() @ (Action(turn, degrees).pose() if turn else np.eye(4))
    label = 9 * ["forward", "backward", "right", "left"].index(kind) + 9 + {"turn_right": 1, "turn_left": 2, None: 0}[turn]
    assert worldplay._action_labels(np.stack([np.eye(4), step])) == [0, label]


def test_turns_of_worldplay_are_not_mirrored(tmp_path):
    "The files of a job, read by another process, beside true views; the release of World2VLM gave its turns the other sign."
    folder = str(ROOT / "data/panoramas")
    [scene] = panorama_scenes(("interior",), 1, seed=3, size=(192, 112), folder=folder)
    turns = [plan(parse_actions(t)) for t in ("turn left 20 degrees", "turn right 20 degrees", "turn right 15 degrees; turn right 10 degrees")]
    teacher = toy_worldplay(tmp_path, width=192, height=112)()
    truth = load_teacher("panorama", folder=folder).imagine(scene, turns)
    for rollout, true in zip(teacher.imagine(scene, turns), truth):
        for view, expected, pose in zip(rollout.images, true.images, keyframe_poses(rollout)):
            seen = slice(None, 110) if pose[0, 2] > 0 else slice(82, None)  # what the anchor shows of it
            assert abs(view.astype(int) - expected)[:, seen].mean() < abs(scene.image.astype(int) - expected)[:, seen].mean() / 3
    jobs = [json.loads(p.read_text()) for p in teacher.process.home.glob("*/job.json")]
    assert {tuple(sorted(set(job["actions"]))) for job in jobs} == {(0, 2), (0, 1)}
    teacher.process.close()


def test_jobs_are_not_done_twice(tmp_path, scene):
    "A folder keeps them for a later run, which then needs no model at all."
    make = toy_worldplay(tmp_path, folder=str(tmp_path / "jobs"))
    turns, first = [plan(parse_actions("turn left 10 degrees"))], make()
    [rollout] = first.imagine(scene, turns, seed=5)
    first.process.close()
    later = make(command=f"{sys.executable} {{server}} no_such_model:load")
    assert (later.imagine(scene, turns, seed=5)[0].images == rollout.images).all()
    with pytest.raises(RuntimeError, match="its process has ended.*no_such_model"): later.imagine(scene, turns, seed=6)


def test_a_slow_process_is_an_error(tmp_path, scene):
    (tmp_path / "slow_model.py").write_text("import time\ndef load(): time.sleep(60)\n")
    teacher = toy_worldplay(tmp_path, timeout=.5)(command=f"env PYTHONPATH={tmp_path} {sys.executable} {{server}} slow_model:load")
    with pytest.raises(RuntimeError, match="took more than 0.5 seconds"): teacher.imagine(scene, [plan(parse_actions("turn left 10 degrees"))])
    teacher.process.process.kill()


def test_a_failed_job_is_a_rejection_and_the_run_goes_on(tmp_path, scene):
    (tmp_path / "picky_model.py").write_text("import numpy as np\ndef load():\n    def generate(job, folder):\n        if 2 in job['actions']: raise RuntimeError('out of memory')\n"
                                             "        return np.zeros((job['frames'], *job['size'][::-1], 3), np.uint8)\n    return generate\n")
    teacher = toy_worldplay(tmp_path)(command=f"env PYTHONPATH={tmp_path} {sys.executable} {{server}} picky_model:load")
    rejected = {}
    rollouts = teacher.imagine(scene, [plan(parse_actions(f"turn {side} 10 degrees")) for side in ("left", "right")], reject=rejected.__setitem__)
    assert len(rollouts) == 1 and list(rejected.values()) == ["worldplay: RuntimeError: out of memory"]
    teacher.process.close()


def test_fastvideo_gets_the_files_of_the_job(tmp_path, scene, monkeypatch):
    "Its package is not here; a recorder stands in for it, with the names of its version 0.2.1."
    import types
    from world2vlm.teachers import worldplay_server
    calls = []
    class VideoGenerator:
        @classmethod
        def from_pretrained(cls, model, **options): return calls.append((model, options)) or cls()
        def generate_video(self, prompt, **options):
            calls.append((prompt, options))
            return {"frames": [np.full((options["height"], options["width"], 3), i, np.uint8) for i in range(options["num_frames"])]}
    monkeypatch.setitem(sys.modules, "fastvideo", types.SimpleNamespace(VideoGenerator=VideoGenerator))
    teacher = load_teacher("worldplay", command="unused", accept_licence=True)
    path = worldplay._latent_path(teacher, plan(parse_actions("turn left 6 degrees; move forward 0.16 meters")))
    folder = worldplay._write_job(tmp_path, scene, worldplay._job(teacher, scene, path, seed=5))
    worldplay_server._do_job(worldplay_server._open_generator("fastvideo"), folder)
    views, [_, (prompt, options)] = np.load(folder / "views.npy"), calls
    assert not (folder / "error.txt").exists() and views[:, 0, 0, 0].tolist() == [4 * k for k in path.keyframes] == [8, 16]
    assert len(path) == 16 and options["num_frames"] == 61 and prompt == teacher.prompt and options["seed"] == 5
    cameras = json.loads(Path(options["pose"]).read_text())
    poses, K = np.array([cameras[str(i)]["extrinsic"] for i in range(16)]), np.array(cameras["0"]["K"])
    np.testing.assert_allclose(poses, path.poses, atol=1e-9)
    np.testing.assert_allclose(K[0, 0] / (2 * K[0, 2]), scene.K[0, 0] / 96)  # as the model normalises it
    assert Path(options["image_path"]).is_file() and options["return_frames"] and not options["save_video"]


def test_the_release_gets_cameras_labels_and_chunks(tmp_path, scene, monkeypatch):
    "Its package is not here either; the names are those of its commit da2d0c2."
    import types
    import torch
    from world2vlm.teachers import worldplay_server
    calls = []
    class Pipeline:
        @classmethod
        def create_pipeline(cls, **options): return calls.append(options) or cls()
        def __call__(self, **options):
            calls.append(options)
            levels = torch.arange(options["video_length"]) / 255
            return types.SimpleNamespace(videos=levels.view(1, 1, -1, 1, 1).expand(1, 3, -1, options["user_height"], options["user_width"]))
    modules = {"hyvideo": {}, "hyvideo.commons": {}, "hyvideo.pipelines": {}, "hyvideo.pipelines.worldplay_video_pipeline": {"HunyuanVideo_1_5_Pipeline": Pipeline},
               "hyvideo.commons.infer_state": {"initialize_infer_state": calls.append}, "hyvideo.commons.parallel_states": {"initialize_parallel_state": lambda sp: sp}}
    for name, content in modules.items(): monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(**content))
    teacher = load_teacher("worldplay", command="unused", accept_licence=True, chunk=4)
    path = worldplay._latent_path(teacher, plan(parse_actions("turn left 6 degrees; move forward 0.16 meters")))
    job = worldplay._job(teacher, scene, path, seed=5)
    folder = worldplay._write_job(tmp_path, scene, job)
    worldplay_server._do_job(worldplay_server._open_generator("release", "folder", "file", "ar"), folder)
    assert not (folder / "error.txt").exists(), (folder / "error.txt").read_text()
    state, opened, options = calls
    assert np.load(folder / "views.npy")[:, 0, 0, 0].tolist() == [4 * k for k in path.keyframes] and opened["action_ckpt"] == "file" and not state.use_sageattn
    assert len(path) == 8 and options["video_length"] == 29 and options["chunk_latent_frames"] == 4 and options["model_type"] == "ar" and options["seed"] == 5
    np.testing.assert_allclose(options["viewmats"][0], np.linalg.inv(path.poses), atol=1e-9)
    assert options["action"][0].tolist() == job["actions"] == [0, 2, 2, 9, 9, 0, 0, 0] and options["Ks"].shape == (1, 8, 3, 3)


# Prompts

@pytest.fixture(scope="module")
def captioner(tmp_path_factory):
    from toy_training import TINY
    from world2vlm.students.models import mini_student
    folder = tmp_path_factory.mktemp("captioner")
    for part in mini_student(["a red chair stands on a grey floor."], TINY, seed=1): part.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("name", ["sana", "cosmos"])
def test_a_student_writes_the_prompt(name, request, captioner, scene):
    from world2vlm.teachers.captions import _caption
    teacher = request.getfixturevalue(name)(prompt="A room: {caption}", captioner=captioner)
    prompts, pipeline = [], teacher.pipeline
    teacher.__dict__["pipeline"] = lambda *args, **options: prompts.extend(a for a in (*args, options.get("prompt")) if isinstance(a, str)) or pipeline(*args, **options)
    turns = [plan(parse_actions(t)) for t in ("turn left 3 degrees", "turn right 3 degrees")]
    assert len(teacher.imagine(scene, turns)) == 2 and prompts == [f"A room: {_caption(teacher.captions, scene.image)}"] * 2 and len(prompts[0]) > 10


@pytest.mark.parametrize("name", ["sana_wm", "cosmos3"])
@pytest.mark.parametrize("options, message", [({"prompt": "{caption}"}, "there is no captioner"), ({"captioner": "folder"}, "no {caption}")])
def test_prompt_and_captioner_belong_together(name, options, message):
    with pytest.raises(ConfigError, match=message): load_teacher(name, **options)


def test_a_second_opinion_is_held_to_the_bounds(cosmos, scene):
    "Random weights see a motion of their own, so their opinion rejects; without it the rollouts stay."
    from world2vlm.teachers.filters import Filter, filter_rollouts
    photo, turns, rejected = replace(scene, depth=None), [plan(parse_actions("turn left 3 degrees"))], {}
    free = Filter(matches=False, sharpness=0, agreement=0)
    rollouts = cosmos(second_opinion=True).imagine(photo, turns)
    assert len(list(filter_rollouts(photo, rollouts, free))) == 1
    assert list(filter_rollouts(photo, rollouts, replace(free, second_opinion=True, rotation=1e-3, drift=1e-6), rejected.__setitem__)) == []
    assert list(rejected.values())[0].startswith("second opinion: rotation: ")
    assert len(list(filter_rollouts(photo, rollouts, replace(free, second_opinion=True, rotation=180, drift=1e3)))) == 1
    without = list(filter_rollouts(photo, cosmos().imagine(photo, turns), replace(free, second_opinion=True), rejected.__setitem__))
    assert without == [] and "second opinion: none" in list(rejected.values())[0]


# Calibration

class Scaled:
    "The simulator, with another size of its turns and moves."
    name, exact = "scaled", True
    def __init__(self, yaw: float = 1.0, scale: float = 1.0): self.gains = {True: yaw, False: scale}

    def imagine(self, scene, trajectories, seed=0, reject=None):
        def scaled(a):
            gain = self.gains[a.is_turn]
            return Action(a.kind, gain * a.amount) if gain > 0 else Action(a.opposite.kind, -gain * a.amount)
        own = {tuple(map(scaled, t.actions)): t for t in trajectories}
        rollouts = load_teacher("simulator").imagine(scene, [plan(actions) for actions in own], seed)
        return [replace(r, teacher="scaled", actions=(t := own[r.actions]).actions, poses=t.poses, keyframes=t.keyframes) for r in rollouts]


ROOMS = list(room_scenes(4, seed=1, start=720_000))
FEW = Calibration(turns=(20,), moves=(.3,))


@pytest.mark.parametrize("yaw_gain, scale", [(1.0, 1.0), (0.8, 1.25)])
def test_gains_are_recovered_by_rendering(yaw_gain, scale):
    result = calibrate_teacher(Scaled(yaw_gain, scale), ROOMS, FEW)
    assert result["yaw"]["gain"] == pytest.approx(yaw_gain, abs=.04) and result["scale"]["gain"] == pytest.approx(scale, abs=.08)
    assert all(result[kind]["low"] <= result[kind]["gain"] <= result[kind]["high"] for kind in ("yaw", "scale"))


def test_gains_are_recovered_by_features():
    "Large pictures; moves need depth."
    scenes = list(room_scenes(3, seed=1, start=720_000, size=(320, 240)))
    result = calibrate_teacher(Scaled(0.8, 0.8), scenes, Calibration(turns=(20,), moves=(.3,), method="features"))
    assert result["yaw"]["gain"] == pytest.approx(.8, abs=.04) and result["scale"]["gain"] == pytest.approx(.8, abs=.1)


def test_a_panorama_measures_turns_only():
    folder = str(ROOT / "data/panoramas")
    result = calibrate_teacher(load_teacher("panorama", folder=folder), panorama_scenes(("interior", "hall"), 1, seed=3, folder=folder), FEW, folder=folder)
    assert result["yaw"]["gain"] == pytest.approx(1, abs=.04) and "scale" not in result


def test_a_calibrated_teacher_shows_what_was_planned(tmp_path, monkeypatch):
    "And one that is only reported stays as it is; rejections name the planned motion."
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    path = tmp_path / "calibration.json"
    calibrate_teacher(Scaled(0.8, 0.8), ROOMS, FEW, path)
    open_teacher = partial(load_teacher, "test_open_teachers:Scaled", yaw=.8, scale=.8, calibration=str(path))
    turn, exact = plan(parse_actions("turn right 20 degrees")), load_teacher("simulator")
    truth = exact.imagine(ROOMS[0], [turn])[0].images[0]
    applied, reported = (open_teacher(calibrated=value).imagine(ROOMS[0], [turn])[0] for value in (True, False))
    gap = lambda rollout: abs(rollout.images[0].astype(int) - truth).mean()
    assert gap(applied) < gap(reported) / 3 and applied.actions == reported.actions == turn.actions
    assert (applied.poses == turn.poses).all() and applied.fidelity["calibrated"] == 1 and reported.fidelity["calibrated"] == 0
    assert applied.fidelity["yaw_gain"] == reported.fidelity["yaw_gain"] == pytest.approx(.8, abs=.04)
    rejected, far = {}, plan(parse_actions("move forward 9 meters"))
    with pytest.raises(ConfigError, match="measured with 'scaled', not with 'simulator'"): load_teacher("simulator", calibration=str(path))
    path.write_text(path.read_text().replace("scaled", "simulator"))
    assert load_teacher("simulator", calibration=str(path)).imagine(ROOMS[0], [far], reject=rejected.__setitem__) == []
    assert list(rejected) == [f"{ROOMS[0].id}: {format_actions(far.actions)}"]


def test_a_mirrored_teacher_is_no_matter_of_calibration(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    result = calibrate_teacher(Scaled(yaw=-1.0), ROOMS, replace(FEW, turns=(5,)), tmp_path / "mirrored.json")
    assert result["yaw"]["gain"] < 0
    with pytest.raises(ConfigError, match="repair the adapter"): load_teacher("test_open_teachers:Scaled", calibration=str(tmp_path / "mirrored.json"))
    with pytest.raises(ConfigError, match="cannot be read"): load_teacher("simulator", calibration=str(tmp_path / "nothing.json"))


# The reader of rays that the contract uses for SVC

@given(st.floats(-40, 40), st.floats(-1, 1), st.floats(-1, 1), st.floats(40, 100))
def test_cameras_are_read_back_from_rays(degrees, x, z, fov):
    pose, K = move(x=x, z=z) @ yaw(degrees), np.diag([1 / 96, 1 / 64, 1]) @ intrinsics(96, 64, fov)
    read, camera = camera_of_rays(pluecker(np.stack([np.eye(4), pose]), np.stack([K, K]), 8, 12)[1])
    np.testing.assert_allclose(read, pose, atol=1e-4), np.testing.assert_allclose(camera, K, atol=1e-4)
