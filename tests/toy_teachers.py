"Teachers of the real classes at toy size: random weights, and a stand-in process for the model that runs elsewhere."
import sys
from functools import partial
from pathlib import Path

import numpy as np

from world2vlm.teachers.base import load_teacher

SIZE = dict(width=96, height=64)  # of the toy videos
QUICK = dict(num_inference_steps=1, guidance_scale=1.0, bf16=False, device="cpu")


def toy_sana(folder: Path, **options):
    from world2vlm.teachers.sana_wm import _save_tiny_model
    return partial(load_teacher, "sana_wm", checkpoint=_save_tiny_model(str(folder)), **SIZE | QUICK | options)


def toy_cosmos(folder: Path, **options):
    from world2vlm.teachers.cosmos3 import _save_tiny_model
    return partial(load_teacher, "cosmos3", checkpoint=_save_tiny_model(str(folder)), tier=256, guardrail=False, **QUICK | options)


def toy_svc(folder: Path, **options):
    "No residual, no metric scale: as the released model."
    from world2vlm.teachers.svc.training import SVCTraining, _small_pipeline, _small_unet
    config = SVCTraining(block_out_channels=(32, 64), attention_levels=(False, True), attention_head_dim=16, residual_scale=0.0, temperature=1.0)
    pipeline = _small_pipeline(_small_unet(config), config)
    pipeline.register_to_config(units_per_metre=0.0)
    pipeline.save_pretrained(folder)
    return partial(load_teacher, "svc", checkpoint=str(folder), num_inference_steps=1, cfg=1.0, **options)


TURNING = '''
import cv2, numpy as np
def load():
    def generate(job, folder):
        image, (width, height) = cv2.imread(str(folder / "anchor.png"))[..., ::-1], job["size"]
        K = np.diag([width, height, 1]) @ np.array(job["K"]) - [[0, 0, .5], [0, 0, .5], [0, 0, 0]]
        turns = [K @ np.array(w2c)[:3, :3] @ np.linalg.inv(K) for w2c in job["w2c"]]
        latents = [cv2.warpPerspective(image, H, (width, height), borderMode=cv2.BORDER_REPLICATE) for H in turns]
        noise = np.random.default_rng(job["seed"]).integers(0, 4, (height, width, 3))  # a sampler
        return np.stack([np.clip(latents[(frame + 3) // 4] + noise, 0, 255).astype(np.uint8) for frame in range(job["frames"])])
    return generate
'''


def toy_worldplay(folder: Path, /, **options):
    "The adapter with a process that turns the anchor as the files of a job say; it knows nothing of this package."
    (folder / "turning_model.py").write_text(TURNING)
    command = f"env PYTHONPATH={folder} {sys.executable} {{server}} turning_model:load"
    return partial(load_teacher, "worldplay", command=command, accept_licence=True, **SIZE | options)


def save_toy_refiner(folder: Path) -> str:
    "The second stage of SANA-WM: its transformer, connectors and Gemma 3."
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, SanaWMLTX2Refiner
    from diffusers.models.transformers.transformer_sana_wm_refiner import SanaWMLTX2RefinerTransformer3DModel
    from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration
    from world2vlm.teachers.sana_wm import _tiny_gemma
    torch.manual_seed(0)
    tiny = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    text = Gemma3ForConditionalGeneration(Gemma3Config(
        text_config=dict(**tiny, vocab_size=64, num_key_value_heads=1, head_dim=8), image_token_index=60, mm_tokens_per_image=4,
        vision_config=dict(**tiny, image_size=28, patch_size=14)))
    heads = {f"{kind}_connector_{name}": value for kind in ("video", "audio")
             for name, value in dict(num_attention_heads=2, attention_head_dim=8, num_layers=1, num_learnable_registers=8).items()}
    connectors = LTX2TextConnectors(caption_channels=16, text_proj_in_factor=2, **heads)
    transformer = SanaWMLTX2RefinerTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=16, cross_attention_dim=32, num_layers=1, caption_channels=16,
        audio_in_channels=8, audio_out_channels=8, audio_num_attention_heads=2, audio_attention_head_dim=8, audio_cross_attention_dim=16)
    pipe = SanaWMLTX2Refiner(transformer, connectors, _tiny_gemma()[0], text, FlowMatchEulerDiscreteScheduler(), text_max_sequence_length=32)
    pipe.save_pretrained(folder)
    return str(folder)


def camera_of_rays(rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    "Pose and K (image sides of 1) from Pluecker rays [6, h, w], direction and moment: the direct linear transform, then RQ."
    from scipy.linalg import rq
    directions, moments = np.moveaxis(rays.astype(float), 0, -1).reshape(-1, 2, 3).transpose(1, 0, 2)
    h, w = rays.shape[1:]
    y, x = np.mgrid[:h, :w].reshape(2, -1)
    pixels = np.stack([(x + .5) / w, (y + .5) / h, np.ones(h * w)], -1)
    cross = lambda d: np.array([[0, -d[2], d[1]], [d[2], 0, -d[0]], [-d[1], d[0], 0]])
    rows = np.concatenate([np.kron(cross(d), p[None]) for d, p in zip(directions, pixels)])  # d x (M p) = 0, M = R inv(K)
    M = np.linalg.svd(rows)[2][-1].reshape(3, 3)
    M *= np.sign(directions[0] @ M @ pixels[0])
    K, turn = rq(np.linalg.inv(M))
    signs = np.diag(np.sign(np.diag(K)))
    K, turn = K @ signs, signs @ turn
    pose = np.eye(4)
    pose[:3, :3] = turn.T
    pose[:3, 3] = np.linalg.lstsq(np.concatenate([-cross(d) for d in directions]), moments.reshape(-1), rcond=None)[0]  # t x d = m
    return pose, K / K[2, 2]


def svc_input(teacher, scene, trajectory) -> dict:
    "What the network of SVC is given: cameras read back from its rays, in metres."
    from world2vlm.teachers.svc.teacher import _units_per_metre
    calls = []
    hook = teacher.pipeline.unet.register_forward_pre_hook(lambda _, inputs: calls.append(inputs))
    try: teacher.imagine(scene, [trajectory])
    finally: hook.remove()
    inputs, rays = calls[0][0], calls[0][3].double().cpu().numpy()
    cameras = [camera_of_rays(view) for view in rays[1:1 + len(trajectory.keyframes)]]
    poses, units = np.stack([pose for pose, _ in cameras]), _units_per_metre(scene)[0]
    poses[:, :3, 3] /= units
    return dict(poses=poses, K=cameras[0][1], dtype=str(inputs.dtype), device=str(inputs.device))
