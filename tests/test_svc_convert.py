"The released weights to a folder: toys of the real classes, in the files and names of the release."
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from world2vlm.core.actions import parse_actions, plan
from world2vlm.core.stages import _named_inputs
from world2vlm.scenes.room import room_scenes
from world2vlm.teachers.base import load_teacher
from world2vlm.teachers.svc import convert
from world2vlm.teachers.svc.convert import _key_map, _main, _rename_keys, _join_release
from world2vlm.teachers.svc.unet import MultiViewUNet

CONFIG = dict(block_out_channels=(32, 32), layers_per_block=1, attention_levels=(True, False), joint_levels=(False, True),
              attention_head_dim=16, cross_attention_dim=8)


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    from diffusers import AutoencoderKL
    from transformers import CLIPConfig, CLIPModel
    folder = tmp_path_factory.mktemp("release")
    torch.manual_seed(0)
    unet = MultiViewUNet(**CONFIG)
    released = _rename_keys(list(unet.state_dict()), {new: old for old, new in _key_map(unet.config).items()})
    for file in ("model.safetensors", "modelv1.1.safetensors"):
        save_file({released[name]: weight.contiguous() + (file == "model.safetensors") for name, weight in unet.state_dict().items()}, folder / file)
    AutoencoderKL(block_out_channels=(16, 16), norm_num_groups=4, down_block_types=("DownEncoderBlock2D",) * 2,
                  up_block_types=("UpDecoderBlock2D",) * 2).save_pretrained(folder / "vae")
    sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    clip = CLIPConfig(text_config=sizes | dict(vocab_size=16), vision_config=sizes | dict(patch_size=32), projection_dim=8)
    CLIPModel(clip).save_pretrained(folder / "clip")  # both towers, as on the hub
    return folder, unet


def sources(folder, **other): return dict(unet=str(folder), vae=str(folder), image_encoder=str(folder / "clip")) | other


@pytest.mark.filterwarnings("ignore:.*neither version")
def test_the_folder_opens_as_a_teacher(release, tmp_path, capsys):
    folder, unet = release
    out = _join_release(str(tmp_path / "svc"), **sources(folder), accept_licence=True, **CONFIG)
    assert capsys.readouterr().out.count("Non-Commercial") == 1
    teacher = load_teacher("svc", checkpoint=str(out), num_inference_steps=2)
    assert all(torch.equal(teacher.pipeline.unet.state_dict()[name], weight) for name, weight in unet.state_dict().items())
    [scene] = room_scenes(1, seed=3, size=(32, 32))
    [rollout] = teacher.imagine(scene, [plan(parse_actions("turn left 20 degrees"))])
    assert rollout.images.shape == (1, 32, 32, 3) and np.ptp(rollout.images) > 0
    assert json.loads((out / "sources.json").read_text())["version"] == "1.1"
    assert "Powered by Stability AI" in (out / "NOTICE").read_text()
    assert _named_inputs({"options": {"svc": {"checkpoint": "svc"}}}, tmp_path) == {"svc": out}, "a dependency of the stages"


@pytest.mark.filterwarnings("ignore:.*neither version")
def test_version_decides_the_file(release, tmp_path):
    folder, unet = release
    out = _join_release(str(tmp_path / "svc"), "1.0", **sources(folder), accept_licence=True, **CONFIG)
    weights = load_file(out / "unet" / "diffusion_pytorch_model.safetensors")
    assert torch.equal(weights["conv_in.bias"], unet.state_dict()["conv_in.bias"] + 1)


def test_a_file_of_the_other_version_is_refused(release, tmp_path, monkeypatch):
    folder, _ = release
    with pytest.warns(UserWarning, match="neither version 1.0 nor 1.1"): known = convert._check_version(folder / "model.safetensors", "1.1")
    monkeypatch.setattr(convert, "_CHECKSUMS", {"1.0": (known[:8], known[-4:]), "1.1": ("b45d13cb", "36da")})
    with pytest.raises(ValueError, match="weights of version 1.0; name the file of version 1.1"):
        _join_release(str(tmp_path / "svc"), **sources(folder, unet=str(folder / "model.safetensors")), accept_licence=True, **CONFIG)
    assert not (tmp_path / "svc").exists()


@pytest.mark.filterwarnings("ignore:.*neither version")
def test_a_part_that_lacks_a_weight_or_does_not_fit(release, tmp_path):
    folder, _ = release
    weights = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_bytes((folder / "vae" / "config.json").read_bytes())
    save_file({name: weight for name, weight in weights.items() if name != "decoder.conv_out.bias"},
              tmp_path / "vae" / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="missing: decoder.conv_out.bias"):
        _join_release(str(tmp_path / "svc"), **sources(folder, vae=str(tmp_path)), accept_licence=True, **CONFIG)
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
    sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, patch_size=32)
    CLIPVisionModelWithProjection(CLIPVisionConfig(**sizes, projection_dim=24)).save_pretrained(tmp_path / "wide")
    with pytest.raises(ValueError, match="image embedding: 24, the denoiser needs 8"):
        _join_release(str(tmp_path / "svc"), **sources(folder, image_encoder=str(tmp_path / "wide")), accept_licence=True, **CONFIG)
    with pytest.raises(FileNotFoundError, match="give the path of a copy"):
        _join_release(str(tmp_path / "svc"), **sources(folder, vae=str(tmp_path / "none")), accept_licence=True, **CONFIG)


def test_the_licence_is_asked_once(release, tmp_path, monkeypatch):
    folder, _ = release
    asked = []
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda text: asked.append(text) or "no")
    options = ["--out", str(tmp_path / "svc"), "--unet", str(folder), "--version", "1.0"]
    with pytest.raises(PermissionError, match="not accepted"): _main(options)
    assert len(asked) == 1 and not (tmp_path / "svc").exists()
