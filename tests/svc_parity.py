"Errors of this package against tensors of the released code of Stable Virtual Camera: python tests/svc_parity.py REFERENCE.safetensors"
import json, sys

import torch
from safetensors import safe_open

from world2vlm.teachers.svc.cameras import _normalise_cameras, pluecker
from world2vlm.teachers.svc.convert import _convert_unet
from world2vlm.teachers.svc.pipeline import _denoise, _guidance_scales, _Window
from world2vlm.teachers.svc.scheduler import SVCScheduler
from world2vlm.teachers.svc.unet import MultiViewUNet

LIMITS = {"unet": 1e-4, "sigmas": 0.0, "cameras": 1e-5, "pluecker": 1e-5, "guider_0": 1e-3, "guider_1": 1e-3, "guider_2": 1e-3}


def unet_of(params: dict) -> MultiViewUNet:
    "A network of the size that the released code's `params` name."
    downs = [2**level for level in range(len(params["channel_mult"]))]
    joint = [f"output_ds{d}" in params["unflatten_names"] for d in downs[:-1]] + [f"middle_ds{downs[-1]}" in params["unflatten_names"]]
    return MultiViewUNet(
        in_channels=params["in_channels"], out_channels=params["out_channels"], block_out_channels=tuple(params["model_channels"] * m for m in params["channel_mult"]),
        layers_per_block=params["num_res_blocks"], attention_levels=tuple(d in params["attention_resolutions"] for d in downs), joint_levels=tuple(joint),
        attention_head_dim=params["num_head_channels"], cross_attention_dim=params["context_dim"], ray_channels=params["dense_in_channels"])


def max_error(ours, theirs) -> float: return float((torch.as_tensor(ours) - theirs).abs().max())


@torch.no_grad()
def errors(path: str) -> dict[str, float]:
    "Largest errors against the tensors of `path`; those of the samples are relative."
    with safe_open(path, "pt") as file:
        params, ref = json.loads(file.metadata()["params"]), {key: file.get_tensor(key) for key in file.keys()}
    unet, scheduler, T = unet_of(params).eval(), SVCScheduler(), len(ref["cam_c2w"])
    unet.load_state_dict(_convert_unet({k.removeprefix("state_dict."): v for k, v in ref.items() if k.startswith("state_dict.")}, unet))
    result = {"unet": max_error(unet(ref["x"], ref["t"], ref["y"], ref["dense_y"], params["num_frames"]), ref["out"]), "sigmas": max_error(scheduler.table, ref["sigmas_table"])}
    for key in (k for k in ref if k.startswith("sigmas_") and k != "sigmas_table"):
        scheduler.set_timesteps(int(key.removeprefix("sigmas_")))
        result["sigmas"] = max(result["sigmas"], max_error(scheduler.sigmas, ref[key]))
    cameras, K = _normalise_cameras(ref["cam_c2w"].numpy(), ref["cam_c2w"].numpy())[0], ref["cam_K"].numpy()
    result |= {"cameras": max_error(cameras, ref["cam_c2w_norm"]), "pluecker": max_error(pluecker(cameras, K, *ref["plucker"].shape[-2:]), ref["plucker"])}
    is_input, clean = torch.arange(T) == 0, ref["latent_in"][:, :ref["noise"].shape[1]].expand(T, -1, -1, -1)
    window = _Window(clean, is_input, ref["ctx"], ref["plucker"], clean.new_zeros(T, 0, *clean.shape[-2:]), torch.ones(T))
    scheduler.set_timesteps(4)
    for guider in range(3):
        guidance = torch.from_numpy(_guidance_scales(guider, cameras, K, is_input.numpy(), 4.0, 1.2))
        samples, expected = _denoise(unet, scheduler, ref["noise"], window._replace(guidance=guidance)), ref[f"z_guider{guider}"]
        result[f"guider_{guider}"] = max_error(samples, expected) / float(expected.abs().max())
    return result


if __name__ == "__main__":
    if len(sys.argv) != 2: sys.exit(__doc__)
    result = errors(sys.argv[1])
    print(json.dumps({"errors": result, "limits": LIMITS}, indent=2))
    sys.exit(any(result[name] > limit for name, limit in LIMITS.items()))
