"Checkpoints load strictly: a weight that is missing, renamed, surplus or of another shape is an error that names it."
import shutil
from copy import deepcopy

import pytest
from safetensors import safe_open
from toy_training import TINY, trainable

from world2vlm.core.config import repo_root
from world2vlm.students.models import load_student, mini_student
from world2vlm.students.checkpoints import _restore_weights
from world2vlm.students.training import Training
from world2vlm.teachers.svc.teacher import SVC


def renamed(weights, key): return {f"{name}_" if name == key else name: value for name, value in weights.items()}
def missing(weights, key): return {name: value for name, value in weights.items() if name != key}
def surplus(weights, key): return {**weights, f"{key}_": weights[key].clone()}
def misshapen(weights, key): return {**weights, key: weights[key][:1].clone()}


def rewrite(path, change, key):
    "Change the weights of a file; `key` is a part of a name."
    from safetensors.torch import load_file, save_file
    weights = load_file(path)
    key = next(name for name in weights if key in name)
    save_file(change(weights, key), path, metadata={"format": "pt"})
    return key.split(".", 2)[-1].replace(".", r"\.")


@pytest.fixture(scope="module")
def student(): return mini_student(["a"], TINY)


@pytest.mark.parametrize("key", ["layers.0.mlp.down_proj", "visual.patch_embed", "embed_tokens", "q_proj.bias"])
@pytest.mark.parametrize("change", [missing, renamed, surplus, misshapen])
def test_student_of_other_weights_is_refused_misfit_kind(student, tmp_path, change, key):
    for part in student: part.save_pretrained(tmp_path)
    name = rewrite(tmp_path / "model.safetensors", change, key)
    with pytest.raises(ValueError, match=f"{tmp_path}.*{name}"): load_student(str(tmp_path))
    with pytest.raises(ValueError, match=name): _restore_weights(student[0], str(tmp_path))


def test_tied_weights_are_not_missing_misfit_kind(student, tmp_path):
    "The output layer is that of the embedding, stored once or twice, as in the 3B model."
    model, processor = deepcopy(student[0]), student[1]
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = True
    model.tie_weights()
    for part in (model, processor): part.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file: assert "lm_head.weight" not in file.keys()
    assert load_student(str(tmp_path))
    rewrite(tmp_path / "model.safetensors", lambda weights, key: {**weights, "lm_head.weight": weights[key].clone()}, "embed_tokens")
    model = load_student(str(tmp_path))[0]
    assert (model.lm_head.weight == model.get_input_embeddings().weight).all()


def test_shipped_student_and_teacher_load_misfit_kind():
    assert load_student(str(repo_root() / "data/base")) and SVC().pipeline


def test_torn_weights_are_refused_misfit_kind(student, tmp_path):
    for part in student: part.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"{tmp_path}.*cannot be read"): load_student(str(tmp_path))


@pytest.mark.parametrize("change", [missing, renamed, surplus])
def test_lora_of_other_weights_is_not_resumed_misfit_kind(student, tmp_path, change):
    lora = trainable(mini_student(["a"], TINY)[0], Training(lora_rank=2, lora_alpha=4))
    lora.save_pretrained(tmp_path)
    assert _restore_weights(lora, str(tmp_path)) == str(tmp_path)
    name = rewrite(tmp_path / "adapter_model.safetensors", change, "q_proj.lora_B")
    with pytest.raises(ValueError, match=f"{tmp_path}.*{name}"): _restore_weights(lora, str(tmp_path))
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match="adapter_model.*run again"): _restore_weights(lora, str(tmp_path))


@pytest.mark.parametrize("change", [missing, renamed, surplus])
def test_teacher_of_other_weights_is_refused_misfit_kind(tmp_path, change):
    shutil.copytree(repo_root() / "data/teacher", tmp_path / "teacher")
    path = sorted((tmp_path / "teacher/unet").glob("*.safetensors"))[-1]
    name = rewrite(path, change, "conv_out.weight")
    with pytest.raises(ValueError, match=f"unet.*{name}"): _ = SVC(str(tmp_path / "teacher")).pipeline
