"Stable Virtual Camera: the network against an independent implementation, its cameras, its guidance, its weights."
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from safetensors.torch import save_file

from svc_parity import LIMITS, errors, unet_of
from world2vlm.core.camera import move, yaw
from world2vlm.teachers.svc.cameras import _normalise_cameras, pluecker
from world2vlm.teachers.svc.convert import _key_map, _convert_unet, _official_unet, _rename_keys
from world2vlm.teachers.svc.pipeline import _guidance_scales
from world2vlm.teachers.svc.scheduler import SVCScheduler

PARAMS = dict(in_channels=11, out_channels=4, model_channels=32, channel_mult=[1, 1, 2, 2], num_res_blocks=1, attention_resolutions=[1, 2, 4], num_head_channels=16,
              context_dim=24, dense_in_channels=6, num_frames=3, unflatten_names=["middle_ds8", "output_ds4", "output_ds2"])


class Plain:
    "The same network, written from the released names with loops instead of modules."
    def __init__(self, state, params): self.s, self.p = state, params
    def lin(self, k, x): return x @ self.s[k + ".weight"].T + self.s.get(k + ".bias", torch.zeros(()))
    def conv(self, k, x, **kw): return F.conv2d(x, self.s[k + ".weight"], self.s[k + ".bias"], **kw)
    def gn(self, k, x, eps): return F.group_norm(x, 32, self.s[k + ".weight"], self.s[k + ".bias"], eps)
    def ln(self, k, x): return F.layer_norm(x, x.shape[-1:], self.s[k + ".weight"], self.s[k + ".bias"])

    def attend(self, k, x, y):  # [L, C], [M, D] -> [L, C], head by head
        q, key, value = (self.lin(f"{k}.to_{n}", z) for n, z in (("q", x), ("k", y), ("v", y)))
        d, heads = self.p["num_head_channels"], []
        for h in range(q.shape[-1] // d):
            cut = slice(h * d, (h + 1) * d)
            heads.append(torch.softmax(q[:, cut] @ key[:, cut].T / d**0.5, -1) @ value[:, cut])
        return self.lin(f"{k}.to_out.0", torch.cat(heads, -1))

    def ff(self, k, x):
        a, b = self.lin(f"{k}.net.0.proj", x).chunk(2, -1)
        return self.lin(f"{k}.net.2", a * F.gelu(b))

    def spatial(self, k, x, y):
        x = x + self.attend(f"{k}.attn1", (z := self.ln(f"{k}.norm1", x)), z)
        x = x + self.attend(f"{k}.attn2", self.ln(f"{k}.norm2", x), y)
        return x + self.ff(f"{k}.ff", self.ln(f"{k}.norm3", x))

    def temporal(self, k, x, y):
        x = x + self.ff(f"{k}.ff_in", self.ln(f"{k}.norm_in", x))
        x = x + self.attend(f"{k}.attn1", (z := self.ln(f"{k}.norm1", x)), z)
        x = x + self.attend(f"{k}.attn2", self.ln(f"{k}.norm2", x), y)
        return self.ff(f"{k}.ff", self.ln(f"{k}.norm3", x))

    def transformer(self, k, x, ctx, joint):  # one window [T, C, h, w]
        T, c, h, w = x.shape
        tokens = self.lin(f"{k}.proj_in", torch.stack([v.reshape(c, -1).T for v in self.gn(f"{k}.norm", x, 1e-6)]))  # [T, hw, C]
        block = f"{k}.transformer_blocks.0"
        if joint: space = self.spatial(block, tokens.reshape(T * h * w, c), ctx[0]).reshape(T, h * w, c)
        else: space = torch.stack([self.spatial(block, tokens[v], ctx[v]) for v in range(T)])
        time = torch.stack([self.temporal(f"{k}.time_mix_blocks.0", space[:, i], ctx[0]) for i in range(h * w)], 1)
        return x + torch.stack([v.T.reshape(c, h, w) for v in self.lin(f"{k}.proj_out", space + time)])

    def res(self, k, x, emb, rays):
        h = F.silu(self.gn(f"{k}.in_layers.0", x, 1e-5))
        scale, shift = self.conv(f"{k}.dense_emb_layers.0", F.interpolate(rays, x.shape[-2:], mode="bilinear", align_corners=True)).chunk(2, 1)
        h = self.conv(f"{k}.in_layers.2", h * (1 + scale) + shift, padding=1) + self.lin(f"{k}.emb_layers.1", F.silu(emb))[:, :, None, None]
        h = self.conv(f"{k}.out_layers.3", F.silu(self.gn(f"{k}.out_layers.0", h, 1e-5)), padding=1)
        return h + (self.conv(f"{k}.skip_connection", x) if f"{k}.skip_connection.weight" in self.s else x)

    def block(self, k, x, emb, rays, ctx, joint):
        "A numbered block: whatever layers the weights name."
        has = lambda part: any(key.startswith(f"{k}.{part}.") for key in self.s)
        if has("0.op"): return self.conv(f"{k}.0.op", x, stride=2, padding=1)
        x = self.res(f"{k}.0", x, emb, rays)
        if has("1.proj_in"): x = self.transformer(f"{k}.1", x, ctx, joint)
        for part in ("1.conv", "2.conv"):
            if has(part): x = self.conv(f"{k}.{part}", F.interpolate(x, scale_factor=2.0), padding=1)
        return x

    def __call__(self, x, t, ctx, rays):  # one window
        p, half = self.p, self.p["model_channels"] // 2
        angle = t[:, None].float() * torch.exp(-np.log(10000) * torch.arange(half) / half)
        emb = self.lin("time_embed.2", F.silu(self.lin("time_embed.0", torch.cat([angle.cos(), angle.sin()], -1))))
        count = lambda prefix: 1 + max(int(k.split(".")[1]) for k in self.s if k.startswith(prefix + "."))
        x = self.conv("input_blocks.0.0", x, padding=1)
        skips = [x]
        for i in range(1, count("input_blocks")): x = self.block(f"input_blocks.{i}", x, emb, rays, ctx, False); skips.append(x)
        x = self.res("middle_block.0", x, emb, rays)
        x = self.res("middle_block.2", self.transformer("middle_block.1", x, ctx, "middle_ds8" in p["unflatten_names"]), emb, rays)
        for i in range(count("output_blocks")):
            ds = 2 ** (len(p["channel_mult"]) - 1 - i // (p["num_res_blocks"] + 1))
            x = self.block(f"output_blocks.{i}", torch.cat([x, skips.pop()], 1), emb, rays, ctx, f"output_ds{ds}" in p["unflatten_names"])
        return self.conv("out.2", F.silu(self.gn("out.0", x, 1e-5)), padding=1)


def random_state(seed=0):
    "A small network and its weights under the released names, every layer random."
    torch.manual_seed(seed)
    unet = unet_of(PARAMS).eval()
    for p in unet.parameters(): torch.nn.init.normal_(p, std=0.1) if p.dim() > 1 else torch.nn.init.normal_(p, mean=0.5, std=0.2)
    here = {new: old for old, new in _key_map(unet.config).items()}
    return unet, {old: unet.state_dict()[new].clone() for new, old in _rename_keys(list(unet.state_dict()), here).items()}


@torch.no_grad()
def test_unet_equals_an_independent_implementation():
    unet, state = random_state()
    T, B = 3, 2
    x, t, ctx, rays = torch.randn(B * T, 11, 16, 8), torch.randint(1000, (B,)).repeat_interleave(T), torch.randn(B * T, 1, 24), torch.randn(B * T, 6, 16, 8)
    output = unet(x, t, ctx, rays, T)
    plain = torch.cat([Plain(state, PARAMS)(x[w], t[w], ctx[w], rays[w]) for w in (slice(0, T), slice(T, 2 * T))])
    assert output.std() > 1e-3
    torch.testing.assert_close(output, plain, atol=1e-4, rtol=1e-4)


def test_parity_command_detects_an_error(tmp_path):
    "A reference written here has no error; the same file with a changed weight has one."
    unet, state = random_state()
    T, scheduler, g = 3, SVCScheduler(), torch.Generator().manual_seed(1)
    rand = lambda *shape: torch.randn(*shape, generator=g)
    path = np.stack([move(0, 0, z) @ yaw(20 * z) for z in (0, 0.5, 1.0)]).astype(np.float32)
    K = np.tile(np.array([[0.9, 0, 0.5], [0, 0.9, 0.5], [0, 0, 1]], np.float32), (T, 1, 1))
    ref = {"x": rand(T, 11, 16, 8), "t": torch.full((T,), 500), "y": rand(T, 1, 24), "dense_y": rand(T, 6, 16, 8), "cam_c2w": torch.from_numpy(path), "cam_K": torch.from_numpy(K),
           "latent_in": rand(1, 5, 16, 8), "noise": rand(T, 4, 16, 8), "ctx": rand(T, 1, 24), "sigmas_table": scheduler.table, "sigmas_50": scheduler.sigmas}
    window = _normalise_cameras(path, path)[0]
    ref |= {"cam_c2w_norm": torch.from_numpy(window), "plucker": torch.from_numpy(pluecker(window, K, 16, 8)), **{f"z_guider{n}": rand(T, 4, 16, 8) for n in range(3)}}
    with torch.no_grad(): ref["out"] = Plain(state, PARAMS)(ref["x"], ref["t"], ref["y"], ref["dense_y"])
    save = lambda weights: save_file({**{k: v.contiguous() for k, v in ref.items()}, **{f"state_dict.{k}": v for k, v in weights.items()}}, tmp_path / "r.safetensors", {"params": json.dumps(PARAMS)})
    save(state)
    result = errors(str(tmp_path / "r.safetensors"))
    assert all(result[name] <= LIMITS[name] for name in ("unet", "sigmas", "cameras", "pluecker"))
    assert result["guider_0"] > LIMITS["guider_0"], "the samples of this file are noise"
    save(state | {"out.2.bias": state["out.2.bias"] + 1})
    assert errors(str(tmp_path / "r.safetensors"))["unet"] > LIMITS["unet"]


def test_conversion_is_strict():
    unet, state = random_state()
    assert set(_convert_unet(state, unet)) == set(unet.state_dict())
    with pytest.raises(ValueError, match="1 missing: conv_out.bias"): _convert_unet({k: v for k, v in state.items() if k != "out.2.bias"}, unet)
    with pytest.raises(ValueError, match="1 unexpected: module.out.2.bias"): _convert_unet(state | {"module.out.2.bias": state["out.2.bias"]}, unet)
    with pytest.raises(ValueError, match="1 of another shape: conv_out.bias"): _convert_unet(state | {"out.2.bias": torch.zeros(5)}, unet)


def test_official_weights_need_their_licence(tmp_path):
    _, state = random_state()
    save_file(state, tmp_path / "model.safetensors")
    config = {k: v for k, v in unet_of(PARAMS).config.items() if not k.startswith("_")}
    with pytest.raises(PermissionError, match="Non-Commercial"): _official_unet(str(tmp_path / "model.safetensors"), **config)
    unet = _official_unet(str(tmp_path / "model.safetensors"), accept_licence=True, **config)
    assert torch.equal(unet.state_dict()["conv_out.bias"], state["out.2.bias"])
    save_file({k: v for k, v in state.items() if k != "out.2.bias"}, tmp_path / "short.safetensors")
    with pytest.raises(ValueError, match="missing: conv_out.bias"): _official_unet(str(tmp_path / "short.safetensors"), accept_licence=True, **config)


@settings(max_examples=30, deadline=None)
@given(st.floats(-90, 90), st.floats(-2, 2), st.floats(-2, 2), st.floats(-180, 180))
def test_rays_are_those_of_relative_poses(angle, x, z, world):
    "Independent of the world frame; directions have length 1 and are orthogonal to their moments; the reference has no moment."
    K, pair = np.array([[0.7, 0, 0.5], [0, 0.7, 0.5], [0, 0, 1]]), np.stack([np.eye(4), move(x, 0, z) @ yaw(angle)])
    rays = pluecker(pair, K, 4, 6)
    np.testing.assert_allclose(rays, pluecker(move(1, 2, 3) @ yaw(world) @ pair, K, 4, 6), atol=2e-5)
    np.testing.assert_allclose(np.linalg.norm(rays[:, :3], axis=1), 1, atol=1e-5)
    np.testing.assert_allclose((rays[:, :3] * rays[:, 3:]).sum(1), 0, atol=1e-5)
    assert not rays[0, 3:].any()


def test_turn_right_points_the_central_ray_to_the_right():
    rays = pluecker(np.stack([yaw(0), yaw(30)]), np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]]), 3, 3)
    np.testing.assert_allclose(rays[1, :3, 1, 1], [0.5, 0, np.sqrt(3) / 2], atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.floats(0.05, 30))
def test_the_length_of_a_straight_path_does_not_matter(length):
    path = np.stack([move(0, 0, z) for z in np.linspace(0, length, 5)])
    cameras, factor = _normalise_cameras(path, path)
    np.testing.assert_allclose(cameras[-1, 2, 3] - cameras[0, 2, 3], 4.0, rtol=1e-4)
    np.testing.assert_allclose(factor * length, 4.0, rtol=1e-4)


def test_guidance_is_smallest_close_to_the_input_view():
    K, is_input = np.tile(np.eye(3), (5, 1, 1)), np.arange(5) == 0
    turns = np.stack([yaw(a) for a in (0, 5, 9.9, 10.1, 40)])
    assert _guidance_scales(1, turns, K, is_input, 4.0, 1.2).tolist() == [1.2, 1.2, 1.2, 4.0, 4.0]
    np.testing.assert_allclose(_guidance_scales(2, turns, K, is_input, 4.0, 1.2), [1.2, 1.2, 1.2, 3.3, 4.0])
    other = K.copy(); other[1, 0, 0] = 2
    assert _guidance_scales(1, turns, other, is_input, 4.0, 1.2)[1] == 4.0, "another lens is another view"
