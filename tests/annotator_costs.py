"""What each annotator costs for a photo: seconds, and memory beyond that of the libraries.

`python tests/annotator_costs.py` measures the toys of the tests on one core and writes data/annotator_costs.json. With `--full` the classes have the sizes of published checkpoints and
random weights, which cost what trained ones do, except that they find as many objects as they can; for a GPU: `python tests/annotator_costs.py --full --device cuda`."""
import argparse
import json
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import tiny_annotators as tiny
import torch

from world2vlm.core.config import repo_root
from world2vlm.core.runs import write_json
from world2vlm.scenes.annotate import load_annotator

SIZE = (480, 640)  # height and width of a photo
OPTIONS = {"depth_pro": {"accept_licence": True}, "mm_grounding_dino": {"names": ["chair", "couch"]}}


def full_size(build):
    "Another function of this name: the same class in the size of a published checkpoint."
    from transformers import (DepthAnythingConfig, DepthAnythingForDepthEstimation, DepthProConfig, DepthProForDepthEstimation, DepthProImageProcessor, DFineConfig, DFineForObjectDetection,
                              Dinov2Config, DPTImageProcessor, GroundingDinoImageProcessor, GroundingDinoProcessor, MMGroundingDinoConfig, MMGroundingDinoForObjectDetection, RfDetrConfig,
                              RfDetrForInstanceSegmentation, RfDetrImageProcessor, RTDetrImageProcessor, RTDetrV2Config, RTDetrV2ForObjectDetection, Sam2Config, Sam2ImageProcessor, Sam2Model,
                              Sam2Processor, ZoeDepthConfig, ZoeDepthForDepthEstimation, ZoeDepthImageProcessor)
    dino = Dinov2Config(hidden_size=384, num_attention_heads=6, image_size=518, patch_size=14, out_features=["stage3", "stage6", "stage9", "stage12"], reshape_hidden_states=False)
    metric = dict(depth_estimation_type="metric", max_depth=20, backbone_config=dino)  # the small one
    makers = {
        "rt_detr_v2": lambda: (RTDetrV2ForObjectDetection(RTDetrV2Config()), RTDetrImageProcessor()), "d_fine": lambda: (DFineForObjectDetection(DFineConfig()), RTDetrImageProcessor()),
        "rf_detr": lambda: (RfDetrForInstanceSegmentation(RfDetrConfig()), RfDetrImageProcessor()),
        "mm_grounding_dino": lambda: (MMGroundingDinoForObjectDetection(MMGroundingDinoConfig()), GroundingDinoProcessor(GroundingDinoImageProcessor(), tiny.mm_grounding_dino()[1].tokenizer)),
        "sam2": lambda: (Sam2Model(Sam2Config()), Sam2Processor(Sam2ImageProcessor())),
        "depth_anything": lambda: (DepthAnythingForDepthEstimation(DepthAnythingConfig(**metric)), DPTImageProcessor(size={"height": 518, "width": 518}, keep_aspect_ratio=True, ensure_multiple_of=14)),
        "zoedepth": lambda: (ZoeDepthForDepthEstimation(ZoeDepthConfig()), ZoeDepthImageProcessor()),
        "depth_pro": lambda: (DepthProForDepthEstimation(DepthProConfig(use_fov_model=True)), DepthProImageProcessor())}
    make = makers[build.__name__]
    def larger(): return make()
    larger.__name__ = build.__name__
    return larger


def resident(field: str) -> int:
    "MiB of this process: VmRSS now, VmHWM at the most."
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) // 1024


def cost(role: str, name: str, options: dict, runs: int = 3) -> dict:
    "Of a photo, after the first one; on a GPU its own memory, else that of the process."
    device, photo = options["device"], np.random.default_rng(5).integers(0, 256, (*SIZE, 3), np.uint8)
    on_gpu, annotator = device.startswith("cuda"), load_annotator(role, name, **options)
    model, before = annotator.opened[0], resident("VmRSS")
    columns = ([photo], [None])[:1 + (role == "depth")]
    getattr(annotator, role)(*columns)
    clock = time.perf_counter if on_gpu else time.process_time
    start = clock()
    for _ in range(runs): getattr(annotator, role)(*columns)
    seconds, weights = (clock() - start) / runs, sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20
    memory = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else resident("VmHWM") - before + weights
    return {"role": role, "parameters": model.num_parameters(), "seconds": round(seconds, 3), "MiB": round(memory)}


def measure(full: bool, device: str):
    "Each annotator in a process of its own, that has the libraries already: its name and what it costs."
    torch.set_num_threads(1)
    for build in (*tiny.DETECTORS, *tiny.DEPTHS):
        role, name = ("objects", "detector") if build in tiny.DETECTORS else ("depth", "depth_model")
        with tempfile.TemporaryDirectory() as home, ProcessPoolExecutor(1, get_context("fork")) as pool:
            parts = [build, tiny.sam2] if role == "objects" and build is not tiny.rf_detr else [build]
            folders = [str(tiny.save(full_size(part) if full else part, home)) for part in parts]
            options = {"checkpoint": folders[0], "device": device} | ({"masks": folders[1]} if len(folders) > 1 else {}) | OPTIONS.get(build.__name__, {})
            yield build.__name__ + (" + sam2" if len(folders) > 1 else ""), pool.submit(cost, role, name, options).result()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    path = repo_root() / "data/annotator_costs.json"
    figures = json.loads(path.read_text()) if path.exists() else {}
    rows = dict(measure(arguments.full, arguments.device))  # before CUDA is touched here, or a fork could not use it
    where = torch.cuda.get_device_name() if arguments.device.startswith("cuda") else "one core"
    figures[f"{'full size' if arguments.full else 'toys'}, {where}"] = rows
    write_json(path, figures)
