"Every adapter from scenes to a student that learned from it: toy models of the real classes, the real stages between them."
from pathlib import Path

import pytest

from toy_teachers import toy_cosmos, toy_sana, toy_svc, toy_worldplay
from toy_training import curve, SMALL
from world2vlm.dataset.shards import read_dataset
from world2vlm.dataset.synthesis import Imagine, make_questions, make_rollouts, make_scenes, Scenes, Supervise
from world2vlm.students.models import mini_student, MiniConfig
from world2vlm.students.sft import SFT, train_sft

TOYS = {"svc": toy_svc, "sana_wm": toy_sana, "cosmos3": toy_cosmos, "worldplay": toy_worldplay}
STUDENT = MiniConfig(image_size=64, patch_size=16, hidden_size=32, head_size=16, vision_layers=1, text_layers=1, vocabulary=512)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "scenes"
    make_scenes(Scenes(n=3, per_shard=3, size=(64, 64)), folder)
    return folder


def options_of(name: str, folder: Path) -> dict:
    if name not in TOYS: return {}
    (folder / "model").mkdir()
    metric = {"units_per_metre": 1.0} if name == "worldplay" else {}  # its lengths are nominal otherwise, and few questions are left
    return {name: TOYS[name](folder / "model", **metric).keywords}


@pytest.mark.parametrize("name", ["reprojection", *TOYS])
def test_a_student_learns_from_it(scenes, tmp_path, name):
    config = Imagine(presets={"single": 3}, ranges={"move": [0.2, 0.4, 0.1], "turn": [10, 20, 10]}, seed=3, options=options_of(name, tmp_path))
    rollouts = make_rollouts(config, name, scenes, tmp_path / "rollouts")
    make_questions(Supervise(shares={"train": 1}), scenes, tmp_path / "rollouts", tmp_path / "examples")
    examples = list(read_dataset("examples", tmp_path / "examples"))
    assert rollouts["rows"] > 0 and {e.teacher for e in examples} == {name} and {e.direction for e in examples} == {"forward", "inverse"}
    for part in mini_student([e.question for e in examples] + [e.answer for e in examples], STUDENT): part.save_pretrained(tmp_path / "start")
    sft = SFT(lora_rank=0, freeze_vision=False, batch_size=8, learning_rate=1e-2, epochs=2.0, limit=48, max_length=1024, box_format="pixels", **SMALL)
    losses = curve(train_sft(sft, str(tmp_path / "start"), str(tmp_path / "examples"), str(tmp_path / "student")))
    assert (tmp_path / "student/model.safetensors").is_file() and sum(losses[-3:]) < .8 * sum(losses[:3])
