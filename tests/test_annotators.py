"Annotators of transformers: every architecture at toy size through the same code, held against the library's own post-processing; checkpoints that are missing, gated, damaged."
import json
import shutil
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
import tiny_annotators as tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from world2vlm.core.camera import intrinsics
from world2vlm.core.config import ConfigError, load_settings
from world2vlm.core.records import check_depth
from world2vlm.dataset.annotation import make_annotations
from world2vlm.dataset.shards import validate_dataset
from world2vlm.dataset.synthesis import make_scenes, Scenes
from world2vlm.scenes.annotate import _annotate_scenes, _annotator_licences, Annotate, DepthMap, load_annotator
from world2vlm.scenes.annotators import _INDOOR_NAMES, DepthModel, Detector, _detections, _likeliest_names, _masks_in_boxes, _name_spans, _prompts
from world2vlm.scenes.photos import photo_scenes
from world2vlm.scenes.room import room_scenes

SHAPES = [(96, 72), (50, 90), (64, 64)]  # width, height
IMAGES = [scene.image for size in (*SHAPES, SHAPES[0]) for scene in room_scenes(1, seed=size[0], size=size)]
NAMES = ["chair", "potted plant", "couch"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    home = tmp_path_factory.mktemp("checkpoints")
    return {build.__name__: str(tiny.save(build, home)) for build in (*tiny.DETECTORS, tiny.sam2, *tiny.DEPTHS)}


def detector(folders, kind, **options): return Detector(folders[kind], masks="" if kind == "rf_detr" else folders["sam2"], names=NAMES, **options)


def reference_boxes(model, processor, image, threshold):
    "Labels, scores and pixels of one picture by itself, as the library's documentation does it."
    size = [image.shape[:2]]
    with torch.inference_mode():
        if "GroundingDino" in type(model).__name__:
            inputs = processor(images=[image], text=[NAMES], return_tensors="pt")
            outputs, own = model(**inputs), inputs.input_ids
            [r] = processor.post_process_grounded_object_detection(outputs, own, threshold, threshold, size)
            words = [processor.post_process_grounded_object_detection(outputs, own, threshold, float(score) - 1e-6, size)[0]["text_labels"][i] for i, score in enumerate(r["scores"])]  # the best word of each
            return [next((name for name in NAMES if set(word.split()) & set(name.split())), None) for word in words], r["scores"], r["boxes"]
        [r] = processor.post_process_object_detection(model(**processor(images=[image], return_tensors="pt")), threshold=threshold, target_sizes=size)
        return [model.config.id2label[int(label)] for label in r["labels"]], r["scores"], r["boxes"]


def reference_masks(annotator, image, boxes):
    "The masks of one picture by itself."
    if not annotator.masks:
        model, processor = annotator.opened
        outputs = model(**processor(images=[image], return_tensors="pt"))
        [r] = processor.post_process_instance_segmentation(outputs, annotator.threshold, target_sizes=[image.shape[:2]], return_binary_maps=True)
        return r["segmentation"].numpy()
    model, processor = annotator.segmenter
    inputs = processor(images=image, input_boxes=[boxes.tolist()], return_tensors="pt")
    outputs = model(**inputs, multimask_output=False)
    return processor.post_process_masks(outputs.pred_masks, inputs["original_sizes"])[0][:, 0].numpy()


@pytest.mark.parametrize("kind", [build.__name__ for build in tiny.DETECTORS])
@pytest.mark.parametrize("threshold", [0.05, 0.6])
def test_objects_are_those_of_the_library(folders, kind, threshold):
    "Boxes and scores to 1e-5 and every pixel of the masks, on pictures of three shapes in one call."
    annotator, seen = detector(folders, kind, threshold=threshold), 0
    with torch.inference_mode():
        for image, found in zip(IMAGES, annotator.objects(IMAGES), strict=True):
            labels, scores, boxes = reference_boxes(*annotator.opened, image, threshold)
            masks = reference_masks(annotator, image, boxes) if len(boxes) else np.zeros((0, *image.shape[:2]), bool)
            shares = np.clip(boxes.numpy() / np.tile(image.shape[1::-1], 2), 0, 1)
            if kind == "rf_detr":  # the library draws no empty masks
                rows = {(label, round(float(score), 6)): (share, score) for label, score, share in zip(labels, scores, shares)}
                matched = [rows[d.label, round(d.score, 6)] for d in found]
                labels, shares, scores = [d.label for d in found], [share for share, _ in matched], [score for _, score in matched]
                assert all(mask.any() for mask in masks)
            elif kind == "mm_grounding_dino":  # where a dot between the names is best, the library has no name
                labels = [label or d.label for label, d in zip(labels, found, strict=True)]
            assert [d.label for d in found] == labels and len(masks) == len(found)
            assert np.allclose([d.box for d in found], np.reshape(shares, (-1, 4)), atol=1e-5)
            assert np.allclose([d.score for d in found], np.array(scores), atol=1e-5)
            for d, mask in zip(found, masks): assert d.mask.dtype == bool and d.mask.shape == image.shape[:2] and (d.mask == mask).mean() > 1 - 1e-5
            seen += len(found)
    assert seen > 3, "random weights find something"


@pytest.mark.parametrize("kind", [build.__name__ for build in tiny.DEPTHS])
def test_metres_are_those_of_the_library(folders, kind):
    annotator = DepthModel(folders[kind], accept_licence=True)
    model, processor = annotator.opened
    for image, answer in zip(IMAGES, annotator.depth(IMAGES, [None] * len(IMAGES)), strict=True):
        with torch.inference_mode(): outputs = model(**processor(images=[image], return_tensors="pt"))
        sizes = dict(target_sizes=[image.shape[:2]]) | (dict(source_sizes=[image.shape[:2]]) if kind == "zoedepth" else {})
        [r] = processor.post_process_depth_estimation(outputs, **sizes)
        assert answer.metres.dtype == np.float32 and np.allclose(answer.metres, r["predicted_depth"], rtol=1e-5, atol=1e-5) and answer.metres.std() > 0
        assert (answer.K is not None) == (kind == "depth_pro")
        if answer.K is not None: assert answer.K[0, 0] == pytest.approx(float(r["focal_length"]), rel=1e-5)


def test_depth_pro_keeps_a_known_camera(folders):
    "Its metres are inverse depths in focal lengths: of two fields of view the narrower one sees farther."
    annotator, (width, height) = DepthModel(folders["depth_pro"], accept_licence=True), SHAPES[0]
    Ks = [intrinsics(width, height, fov) for fov in (30, 60)]
    narrow, wide, guessed = annotator.depth([IMAGES[0]] * 3, [*Ks, None])
    near = narrow.metres < 1000
    assert near.any() and np.allclose((narrow.metres / wide.metres)[near], Ks[0][0, 0] / Ks[1][0, 0], rtol=1e-4)
    assert narrow.K is None and wide.K is None and np.allclose(guessed.K, annotator.camera(IMAGES[:1])[0], rtol=1e-5)
    with pytest.raises(ConfigError, match="zoedepth estimates no camera; take Depth Pro"): DepthModel(folders["zoedepth"]).camera(IMAGES)


def test_bfloat16_stays_close(folders):
    exact, fast = (detector(folders, "d_fine", bf16=bf16, threshold=0.3).objects(IMAGES[:1])[0] for bf16 in (False, True))
    assert len(exact) and all(np.isfinite(d.box).all() and d.mask.dtype == bool for d in fast)
    metres = [DepthModel(folders["zoedepth"], bf16=bf16).depth(IMAGES[:1], [None])[0].metres for bf16 in (False, True)]
    assert np.allclose(*metres, rtol=0.2)


@pytest.mark.parametrize("kind", [build.__name__ for build in tiny.DETECTORS])
def test_a_plain_folder_becomes_scenes_with_every_model(folders, kind, tmp_path):
    "The roles as params.yaml names them, on photos of any size."
    from PIL import Image
    for i, image in enumerate(IMAGES[:3]): Image.fromarray(image).save(tmp_path / f"{i}.jpg")
    objects = {"checkpoint": folders[kind], "names": NAMES} | ({} if kind == "rf_detr" else {"masks": folders["sam2"]})
    options = {"objects": objects, "depth": {"checkpoint": folders["depth_pro"], "accept_licence": True}}
    config = Annotate(objects="detector", depth="depth_model", options=options, confidence=0.5, area=(0, 1), border=0)
    rejected = []
    scenes = _annotate_scenes(list(photo_scenes(tmp_path)), config, lambda *row: rejected.append(row))
    assert [(s.K_evidence, s.depth_evidence) for s in scenes] == [("estimated", "estimated")] * 3
    assert all(isinstance(s.instances, list) and check_depth(s.depth) is None for s in scenes)
    assert set(_annotator_licences(config).values()) == {"apache-2.0"}


def test_sam2_as_the_hub_has_it(folders, tmp_path):
    "The checkpoints of SAM 2 there are those for videos; the part for pictures gives the same masks."
    from transformers import Sam2VideoConfig, Sam2VideoModel
    model, processor = detector(folders, "d_fine").segmenter
    parts = model.config.to_dict()
    config = Sam2VideoConfig(**{name: parts[name] for name in ("vision_config", "prompt_encoder_config", "mask_decoder_config")}, memory_attention_hidden_size=16, memory_encoder_hidden_size=16,
                             memory_encoder_output_channels=8, memory_attention_feed_forward_hidden_size=16, memory_attention_num_layers=1, memory_attention_rope_feat_sizes=[4, 4],
                             memory_fuser_embed_dim=16, memory_fuser_intermediate_dim=16, mask_downsampler_embed_dim=16)
    torch.manual_seed(1)
    video = Sam2VideoModel(config)
    assert not video.load_state_dict(model.state_dict(), strict=False).unexpected_keys
    video.save_pretrained(tmp_path / "video")
    processor.save_pretrained(tmp_path / "video")
    boxes = np.array([[10.0, 10, 50, 40], [30, 5, 90, 60]])
    masks = [_masks_in_boxes(Detector(folders["d_fine"], masks=str(folder)), IMAGES[0], boxes) for folder in (folders["sam2"], tmp_path / "video")]
    assert masks[0].any() and np.array_equal(*masks)


def test_the_settings_of_the_paper_with_toys(folders, tmp_path):
    "The stage as the profile `paper` names it, with other checkpoints."
    from PIL import Image
    (tmp_path / "photos").mkdir()
    for i, image in enumerate(IMAGES): Image.fromarray(image).save(tmp_path / f"photos/{i}.jpg")
    make_scenes(Scenes(source="photos", folder=str(tmp_path / "photos"), n=0, size=(90, 70), per_shard=2), tmp_path / "scenes")
    paper = load_settings(Annotate, "annotate", "paper")
    toys = {"objects": {"checkpoint": folders["rt_detr_v2"], "masks": folders["sam2"], "device": "cpu"}, "depth": {"checkpoint": folders["depth_anything"], "device": "cpu"}}
    assert {role: sorted(options) for role, options in paper.options.items()} == {role: sorted(options) for role, options in toys.items()}
    stats = make_annotations(replace(paper, options=toys, workers=1), tmp_path / "scenes", tmp_path / "annotated")
    assert validate_dataset("scenes", tmp_path / "annotated") == [] and stats["counts"]["depth_evidence"] == {"estimated": 3} and stats["reasons"]
    assert set(stats["recipe"]["weights"].values()) == {"apache-2.0"} and "apache-2.0" in (tmp_path / "annotated/README.md").read_text()


# Names for a detector that reads
def test_names_are_put_into_as_few_texts_as_can_hold_them():
    count = lambda text: len(text.split())
    prompts = _prompts(_INDOOR_NAMES, count, 20)
    assert sum(prompts, []) == [*_INDOOR_NAMES] and all(count(". ".join(p) + ".") <= 20 for p in prompts) and len(prompts) < len(_INDOOR_NAMES) / 8
    assert _prompts(["a b c d"], count, 2) == [["a b c d"]], "a name that is too long stands alone"
    assert len(set(_INDOOR_NAMES)) == len(_INDOOR_NAMES) > 50 and [*_INDOOR_NAMES] == sorted(_INDOOR_NAMES) and all(n == n.lower() and "." not in n for n in _INDOOR_NAMES)


def test_more_names_than_a_text_holds(folders):
    "Two texts: what either finds counts, and each picture has both."
    one = Detector(folders["mm_grounding_dino"], masks=folders["sam2"], names=NAMES[:2], threshold=0.3)
    both = Detector(folders["mm_grounding_dino"], masks=folders["sam2"], names=[*NAMES[:2], "picture frame"] * 6, threshold=0.3)
    assert [p for p in _prompts(both.names, lambda text: len(both.opened[1].tokenizer(text).input_ids), 32)][1:]
    assert len(both.objects(IMAGES[:1])[0]) > len(one.objects(IMAGES[:1])[0])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=6), st.integers(0, 2**32 - 1))
def test_every_token_of_a_name_counts_and_no_other(lengths, seed):
    "A word that the tokenizer splits, as nightstand, is one name; marks and dots are none."
    tokens, names = [101, *(token for n in lengths for token in (*range(1000, 1000 + n), 4)), 102], [f"name {i}" for i in range(len(lengths))]
    spans, rng = _name_spans(tokens, 4), np.random.default_rng(seed)
    assert [tokens[span] for span in spans] == [list(range(1000, 1000 + n)) for n in lengths]
    scores, best = rng.uniform(0, 0.5, (5, len(tokens) + 3)), rng.integers(0, len(names), 5)
    scores[:, [i for i, token in enumerate(tokens) if token < 1000]] = 0.9
    for row, name in zip(scores, best): row[rng.integers(spans[name].start, spans[name].stop)] = 0.6
    assert _likeliest_names(scores, spans, names) == [names[i] for i in best]
    assert _likeliest_names(scores[:0], spans, names) == []


def test_a_name_that_was_cut_has_no_dot(): assert _name_spans([101, 7, 8, 9], 4) == [slice(1, 3)]


def test_boxes_beyond_the_picture_are_cut():
    [d] = _detections((["chair"], np.array([0.7]), np.array([[-5.0, 10, 120, 40]])), np.ones((1, 50, 100), bool))
    assert d.box == (0, 0.2, 1, 0.8) and type(d.score) is float


# Checkpoints
def test_a_missing_checkpoint_is_one_error_with_the_remedy(tmp_path):
    for annotator in (Detector(str(tmp_path / "none")), DepthModel("someone/depth")):
        with pytest.raises(ConfigError, match="no such folder; for a name on the hub state its revision, a commit of 40 hex digits"): annotator.opened
    with pytest.raises(ConfigError, match="(?s)someone/depth: no such folder, and not to be fetched from the hub.*hf download someone/depth"):
        DepthModel("someone/depth", revision="0" * 40).opened


def test_a_gated_checkpoint_says_how_to_get_it(monkeypatch):
    from huggingface_hub.errors import GatedRepoError
    from transformers.utils import hub
    def refuse(*args, **options): raise GatedRepoError("Access is restricted", response=httpx.Response(403, request=httpx.Request("GET", "https://huggingface.co")))
    for name in ("hf_hub_download", "snapshot_download"): monkeypatch.setattr(hub, name, refuse, raising=False)
    with pytest.raises(ConfigError, match="facebook/gated: gated; accept its licence at https://huggingface.co/facebook/gated, log in by `hf auth login`"):
        Detector("facebook/gated", revision="a" * 40).opened


def test_a_licence_must_be_accepted(folders):
    with pytest.raises(ConfigError, match="apple-amlr, for research only.*huggingface.co/apple/DepthPro-hf.*accept_licence: true"): DepthModel(folders["depth_pro"]).opened


def damaged(folders, kind, tmp_path, change):
    "A copy of a checkpoint with other weights."
    folder = tmp_path / kind
    shutil.copytree(folders[kind], folder)
    weights = load_file(folder / "model.safetensors")
    save_file(change(weights), folder / "model.safetensors", {"format": "pt"})
    return str(folder)


@pytest.mark.parametrize("kind", ["d_fine", "depth_anything", "rf_detr"])
@pytest.mark.parametrize("change, message", [
    (lambda w: {k: v for i, (k, v) in enumerate(w.items()) if i}, "missing: "), (lambda w: {**w, "other.weight": np.ones(3, np.float32)}, "surplus: .*other.weight"),
    (lambda w: {k: np.ones((3, 5), np.float32) if not i else v for i, (k, v) in enumerate(w.items())}, "of another shape: ")])
def test_weights_that_do_not_fit_are_named(folders, kind, tmp_path, change, message):
    "Instead of a model with some random layers."
    cls = DepthModel if kind == "depth_anything" else Detector
    with pytest.raises(ValueError, match=message): cls(damaged(folders, kind, tmp_path, change)).opened


def test_pickled_weights_are_not_opened(folders, tmp_path):
    folder = tmp_path / "pickled"
    shutil.copytree(folders["zoedepth"], folder)
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="safetensors"): DepthModel(str(folder)).opened


def test_models_of_other_kinds_are_refused(folders, tmp_path):
    with pytest.raises(ConfigError, match="finds boxes only; name a SAM 2 as masks"): Detector(folders["d_fine"]).objects(IMAGES[:1])
    with pytest.raises(ConfigError, match="relative depth has no metres"): DepthModel(str(tiny.save(tiny.depth_anything, tmp_path, kind="relative"))).opened
    with pytest.raises(ConfigError, match="sam2 has no known metres; take one of depth_anything, zoedepth, depth_pro"): DepthModel(folders["sam2"]).opened
    folder = tmp_path / "unknown"
    shutil.copytree(folders["d_fine"], folder)
    (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | {"architectures": ["DFineForDreams"]}))
    with pytest.raises(ValueError, match="DFineForDreams is not one of transformers"): Detector(str(folder)).opened


def test_licences_come_from_the_model_cards(folders, tmp_path):
    other = str(tiny.save(tiny.zoedepth, tmp_path, licence="other\nlicense_name: apple-amlr"))
    assert DepthModel(other).licences == {other: "apple-amlr"} and detector(folders, "d_fine").licences == {folders["d_fine"]: "apache-2.0", folders["sam2"]: "apache-2.0"}
    Path(other, "README.md").unlink()
    assert DepthModel(other).licences == {other: "unknown"}


def test_options_are_checked_before_a_model_is_opened():
    with pytest.raises(ConfigError, match="missing a required argument: 'checkpoint'; its options are: checkpoint, revision, masks"): load_annotator("objects", "detector")
    with pytest.raises(ConfigError, match="its options are: checkpoint, revision, accept_licence"): load_annotator("depth", "depth_model", checkpoint="x", masks="y")
    assert DepthMap(np.ones((2, 2))).K is None
