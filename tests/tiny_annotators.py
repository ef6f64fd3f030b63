"Annotators of transformers at toy size: real classes with random weights, saved as a checkpoint with its processor and a model card."
from pathlib import Path

import torch

COCO = {0: "chair", 1: "couch", 2: "potted plant", 3: "dining table", 4: "hot dog"}
WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] . ? chair couch table lamp potted plant book picture frame".split()
RESNET = dict(model_type="rt_detr_resnet", embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic", out_features=["stage2", "stage3", "stage4"])
HGNET = dict(model_type="hgnet_v2", embedding_size=8, depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 16, 16], stem_channels=[3, 8, 8], stage_in_channels=[8, 8, 8, 16],
             stage_mid_channels=[4, 4, 4, 4], stage_out_channels=[8, 8, 16, 16], stage_num_blocks=[1, 1, 1, 1], stage_downsample=[False, True, True, True],
             stage_light_block=[False, False, False, False], stage_kernel_size=[3, 3, 3, 3], stage_numb_of_layers=[1, 1, 1, 1], out_features=["stage2", "stage3", "stage4"])
DETR = dict(encoder_hidden_dim=32, encoder_in_channels=[8, 16, 16], encoder_ffn_dim=32, encoder_attention_heads=2, d_model=32, num_queries=12, decoder_in_channels=[32, 32, 32],
            decoder_ffn_dim=32, decoder_layers=2, decoder_attention_heads=2, num_denoising=0, id2label=COCO, label2id={v: k for k, v in COCO.items()})
DINO = dict(model_type="dinov2", hidden_size=32, num_hidden_layers=4, num_attention_heads=2, patch_size=14, image_size=28, out_indices=[1, 2, 3, 4], apply_layernorm=True, reshape_hidden_states=False)


def _spread(model) -> None:
    "Random weights large enough that scores, boxes, masks and depths differ from place to place, and not so large that rounding does."
    size = 0.7 if "DepthAnything" in type(model).__name__ else 1.5
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1: weight.normal_(0, size / weight[0].numel() ** 0.5)
            elif "bias" in name and ("class" in name or "score" in name): weight.normal_(0, 1)


def rt_detr_v2():
    from transformers import RTDetrImageProcessor, RTDetrV2Config, RTDetrV2ForObjectDetection
    return RTDetrV2ForObjectDetection(RTDetrV2Config(backbone_config=RESNET, **DETR)), RTDetrImageProcessor(size={"height": 64, "width": 64})


def d_fine():
    from transformers import DFineConfig, DFineForObjectDetection, RTDetrImageProcessor
    return DFineForObjectDetection(DFineConfig(backbone_config=HGNET, lqe_hidden_dim=8, **DETR)), RTDetrImageProcessor(size={"height": 64, "width": 64})


def rf_detr():
    from transformers import RfDetrConfig, RfDetrForInstanceSegmentation, RfDetrImageProcessor
    backbone = dict(model_type="rf_detr_dinov2", hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14, num_windows=2, out_features=["stage1", "stage2"])
    config = RfDetrConfig(backbone_config=backbone, d_model=32, decoder_ffn_dim=32, decoder_layers=2, decoder_self_attention_heads=2, decoder_cross_attention_heads=2, decoder_n_points=2,
                          num_queries=12, group_detr=1, intermediate_size=32, id2label=COCO, label2id={v: k for k, v in COCO.items()})
    return RfDetrForInstanceSegmentation(config), RfDetrImageProcessor(size={"height": 56, "width": 56})


def mm_grounding_dino():
    from tempfile import TemporaryDirectory
    from transformers import BertTokenizerFast, GroundingDinoImageProcessor, GroundingDinoProcessor, MMGroundingDinoConfig, MMGroundingDinoForObjectDetection
    swin = dict(model_type="swin", embed_dim=8, depths=[1, 1, 1], num_heads=[2, 2, 2], window_size=4, image_size=64, out_indices=[2, 3])
    bert = dict(model_type="bert", hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, vocab_size=len(WORDS), max_position_embeddings=64)
    config = MMGroundingDinoConfig(backbone_config=swin, text_config=bert, d_model=32, num_queries=12, encoder_layers=1, decoder_layers=2, encoder_ffn_dim=32, decoder_ffn_dim=32,
                                   encoder_attention_heads=2, decoder_attention_heads=2, num_feature_levels=3, max_text_len=32)
    with TemporaryDirectory() as folder:
        (Path(folder) / "vocab.txt").write_text("\n".join(WORDS))
        tokenizer = BertTokenizerFast(vocab=str(Path(folder) / "vocab.txt"), model_max_length=32)
    return MMGroundingDinoForObjectDetection(config), GroundingDinoProcessor(GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}), tokenizer)


def sam2():
    from transformers import Sam2Config, Sam2ImageProcessor, Sam2Model, Sam2Processor
    hiera = dict(model_type="sam2_hiera_det_model", hidden_size=8, num_attention_heads=1, image_size=[64, 64], window_positional_embedding_background_size=[4, 4], blocks_per_stage=[1, 2, 2, 1],
                 embed_dim_per_stage=[8, 16, 32, 64], num_attention_heads_per_stage=[1, 1, 2, 2], window_size_per_stage=[4, 4, 4, 4], global_attention_blocks=[4])
    vision = dict(backbone_config=hiera, backbone_channel_list=[64, 32, 16, 8], backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]], fpn_hidden_size=16, fpn_top_down_levels=[2, 3])
    config = Sam2Config(vision_config=vision, prompt_encoder_config=dict(hidden_size=16, image_size=64, patch_size=16, mask_input_channels=4),
                        mask_decoder_config=dict(hidden_size=16, mlp_dim=16, num_attention_heads=2, iou_head_hidden_dim=16))
    return Sam2Model(config), Sam2Processor(Sam2ImageProcessor(size={"height": 64, "width": 64}, mask_size={"height": 16, "width": 16}))


def depth_anything(kind: str = "metric"):
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, DPTImageProcessor
    config = DepthAnythingConfig(backbone_config=DINO, reassemble_hidden_size=32, neck_hidden_sizes=[8, 8, 16, 16], fusion_hidden_size=8, head_hidden_size=8, depth_estimation_type=kind, max_depth=20)
    return DepthAnythingForDepthEstimation(config), DPTImageProcessor(size={"height": 56, "width": 56}, keep_aspect_ratio=True, ensure_multiple_of=14)


def zoedepth():
    from transformers import ZoeDepthConfig, ZoeDepthForDepthEstimation, ZoeDepthImageProcessor
    beit = dict(model_type="beit", hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32, image_size=64, patch_size=16, use_relative_position_bias=True,
                out_features=["stage1", "stage2", "stage3", "stage4"], reshape_hidden_states=False)
    config = ZoeDepthConfig(backbone_config=beit, backbone_hidden_size=32, neck_hidden_sizes=[8, 8, 16, 16], fusion_hidden_size=8, bottleneck_features=8, num_relative_features=8, bin_embedding_dim=8,
                            num_attractors=[4, 2, 2, 1], bin_configurations=[dict(n_bins=8, min_depth=0.001, max_depth=10.0, name="nyu")])
    return ZoeDepthForDepthEstimation(config), ZoeDepthImageProcessor(size={"height": 64, "width": 96}, ensure_multiple_of=32)


def depth_pro():
    from transformers import DepthProConfig, DepthProForDepthEstimation, DepthProImageProcessor
    dino = dict(model_type="dinov2", hidden_size=16, num_hidden_layers=2, num_attention_heads=2, patch_size=4, image_size=16, intermediate_size=16, use_mask_token=False)
    config = DepthProConfig(patch_size=16, fusion_hidden_size=16, intermediate_hook_ids=[1, 0], intermediate_feature_dims=[16, 8], scaled_images_ratios=[0.5, 1.0], scaled_images_overlap_ratios=[0.0, 0.2],
                            scaled_images_feature_dims=[12, 12], use_fov_model=True, image_model_config=dino, patch_model_config=dino, fov_model_config=dino)
    model = DepthProForDepthEstimation(config)
    torch.nn.init.constant_(model.fov_model.head.layers[-1].bias, 50)  # degrees
    return model, DepthProImageProcessor(size={"height": 32, "width": 32})


DETECTORS, DEPTHS = (rt_detr_v2, d_fine, mm_grounding_dino, rf_detr), (depth_anything, zoedepth, depth_pro)


def save(build, folder: Path, seed: int = 0, licence: str = "apache-2.0", **options) -> Path:
    "The checkpoint that `build` makes, in `folder` under the name of the function."
    path = Path(folder) / build.__name__
    torch.manual_seed(seed)
    model, processor = build(**options)
    _spread(model)
    model.eval().save_pretrained(path)
    processor.save_pretrained(path)
    (path / "README.md").write_text(f"---\nlicense: {licence}\n---\n# {build.__name__}\n")
    return path
