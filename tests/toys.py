"""What the profile `rehearsal` has in place of the paper's models and pictures: `python tests/toys.py data/toys`.
The classes, the settings of the processors and the layout of the folders are those of the released models; the weights are random and few."""
import sys
from pathlib import Path

from tiny_annotators import depth_anything, rt_detr_v2, sam2, save

def photos(folder: Path, n: int = 8) -> None:
    "Views of simulated rooms as plain JPEGs: no depth, no camera, no objects."
    from PIL import Image
    from world2vlm.scenes.room import room_scenes
    folder.mkdir(parents=True, exist_ok=True)
    for number, scene in enumerate(room_scenes(n, size=(1280, 720), fov_deg=54, seed=7)):
        Image.fromarray(scene.image).save(folder / f"photo_{number}.jpg", quality=90)


def student(folder: Path) -> None:
    "Qwen2.5-VL with the patches and areas of the released processor, in bfloat16."
    import torch
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor
    from world2vlm.students.models import _CHAT_TEMPLATE, MiniConfig, mini_student
    from world2vlm.tasks.tasks import TASKS
    texts = [text for task in TASKS.values() for text in (*task.questions, task.instruction, task.sentence_instruction, *task.sentences)]
    small = MiniConfig(image_size=56, patch_size=14, hidden_size=32, head_size=16, vision_layers=1, text_layers=2, vocabulary=600)
    model, processor = mini_student(texts, small)
    model.config.text_config.max_position_embeddings = 32768
    tower = model.config.vision_config
    tower.temporal_patch_size, tower.window_size = 2, 112
    model = type(model)(model.config).to(torch.bfloat16)
    words = processor.tokenizer
    words.model_max_length = 32768
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = words.eos_token_id, words.pad_token_id
    sizes = dict(size={"shortest_edge": 3136, "longest_edge": 12845056}, patch_size=14, merge_size=2, temporal_patch_size=2)  # of the released model
    model.save_pretrained(folder)
    Qwen2_5_VLProcessor(image_processor=Qwen2VLImageProcessor(**sizes), tokenizer=words, video_processor=Qwen2VLVideoProcessor(**sizes),
                        chat_template=_CHAT_TEMPLATE).save_pretrained(folder)


def svc(folder: Path) -> None:
    "UNet, VAE, CLIP and scheduler as `_join_release` joins them; two steps of sampling."
    import torch
    from diffusers import AutoencoderKL
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
    from world2vlm.teachers.svc.pipeline import StableVirtualCameraPipeline
    from world2vlm.teachers.svc.scheduler import SVCScheduler
    from world2vlm.teachers.svc.unet import MultiViewUNet
    torch.manual_seed(0)
    blocks = dict(down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, block_out_channels=(8,) * 4)
    vae = AutoencoderKL(**blocks, layers_per_block=1, norm_num_groups=4, latent_channels=4)
    clip = CLIPVisionModelWithProjection(CLIPVisionConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                                                          image_size=224, patch_size=56, projection_dim=8))
    unet = MultiViewUNet(block_out_channels=(16, 16, 16, 16), layers_per_block=1, attention_levels=(False, False, False, True), joint_levels=(False, False, False, True),
                         attention_head_dim=8, cross_attention_dim=8, norm_num_groups=8)
    StableVirtualCameraPipeline(unet.eval(), SVCScheduler(), vae.eval(), clip.eval(), num_inference_steps=2).save_pretrained(folder)


def benchmarks(home: Path) -> None:
    "The seven public benchmarks in their layouts of today with as many questions as they have, which repeat a few about small pictures."
    import json
    import pyarrow as pa
    from pyarrow import parquet
    from test_benchmarks import film, lines, write
    write(home)
    def repeated(records, n, **number): return [records[i % len(records)] | {name: f"{records[i % len(records)][name]}_{i}" if text else i for name, text in number.items()} for i in range(n)]
    def read(path): return [json.loads(line) for line in path.read_text().splitlines()]
    sat = json.loads((home / "data/test.json").read_text())
    for split, n in (("test", 150), ("val", 500)): (home / f"data/{split}.json").write_text(json.dumps(repeated(sat, n, database_idx=False)))
    for name, n in (("test.jsonl", 5130), ("data/raw/MindCube_tinybench.jsonl", 1050), ("QA/enact_ordering.jsonl", 8972)):
        lines(home / name, repeated(read(home / name), n, id=True))
    lines(home / "test.jsonl", [r | {"scene_name": f"scene{i % 5}"} for i, r in enumerate(read(home / "test.jsonl"))])
    for k in range(5): film(home / f"scannet/scene{k}.mp4")
    (home / "ViewSpatial-Bench.json").write_text(json.dumps(repeated(json.loads((home / "ViewSpatial-Bench.json").read_text()), 5712)))
    rows = parquet.read_table(home / "MMSI_Bench.parquet").to_pylist()
    parquet.write_table(pa.Table.from_pylist(repeated(rows, 1000, id=False)), home / "MMSI_Bench.parquet")
    for path, n in zip(sorted((home / "data/vqa_and_retrieval").rglob("*.jsonl")), (3542, 1)): lines(path, repeated(read(path), n))


if __name__ == "__main__":
    home = Path(sys.argv[1])
    for name in ("sat", "vsibench", "mindcube", "viewspatial", "mmsi", "enact", "camerabench"): benchmarks(home / "benchmarks" / name)
    photos(home / "photos")
    student(home / "student")
    svc(home / "svc")
    for build in (rt_detr_v2, sam2, depth_anything): save(build, home)
