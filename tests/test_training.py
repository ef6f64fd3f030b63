"What both stages of training share: which rows are read, in which order."
import resource
import shutil
import signal
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_training import PLAIN, colour_examples, home, one_thread, picture, trainable  # noqa: F401 (fixtures among them)

from world2vlm.dataset.shards import write_shards
from world2vlm.students import checkpoints, training
from world2vlm.students.sft import train_sft
from world2vlm.students.training import Training, training_row, training_rows


def test_steps_keep_their_examples_when_the_short_ones_come_first():
    order, lengths = training._reading_order(50, seed=3), np.random.default_rng(0).integers(5, 90, 50)
    tidy = training._sort_within_steps(order, lengths, 8)
    for start in range(0, 50, 8):
        assert sorted(tidy[start:start + 8]) == sorted(order[start:start + 8]) and (np.diff(lengths[tidy[start:start + 8]]) >= 0).all()


def test_processes_get_equal_work():
    "Batches go to the processes in turn; what each has to do in a step is about the same."
    order, lengths = training._reading_order(64, seed=3), np.random.default_rng(0).integers(5, 90, 64)
    tidy = training._sort_within_steps(order, lengths, 4, accumulation=4, processes=4)
    assert sorted(tidy) == sorted(order)
    widest = lengths[tidy].reshape(4, 4, 4).max(-1).sum(0)  # [rounds, processes, batch] -> one sum for each process
    assert widest.max() < 1.1 * widest.min()


def test_reading_order_is_a_permutation_for_each_epoch():
    order = training._reading_order(50, epochs=2.5, seed=3)
    assert len(order) == 125 and sorted(order[:50]) == sorted(order[50:100]) == list(range(50)) and len(set(order[100:])) == 25
    assert (order == training._reading_order(50, epochs=2.5, seed=3)).all()
    assert (order != training._reading_order(50, epochs=2.5, seed=4)).any()


def test_a_damaged_shard_trains_nothing(home, tmp_path):
    "A shard of another checksum than stats.json lists is refused, also where every page of it can be read."
    folder = tmp_path / "examples"
    shutil.copytree(home / "examples", folder)
    [shard] = (folder / "data").glob("*.parquet")
    with shard.open("ab") as file: file.write(b"x")
    with pytest.raises(ValueError, match="damaged shard .*another checksum.*again"): training_rows(folder, Training())


def test_both_directions_or_one(home, tmp_path):
    with pytest.raises(ValueError, match="inverse.*directions"):
        training_rows(home / "examples", replace(PLAIN, directions=("inverse",)), cache=str(tmp_path))
    assert len(training_rows(home / "examples", replace(PLAIN, limit=10), cache=str(tmp_path))) == 10


def test_scenes_that_are_set_aside_are_not_trained_on(home):
    config = replace(PLAIN, validation=.25)
    read = lambda **options: {row["images"][0].tobytes() + row["completion"][0]["content"].encode() for row in rows(**options)}
    rows = lambda **options: training_rows(home / "examples", config, to_row=lambda e, *_: training_row({**e, "answer": e["scene_id"]}), **options)
    unread, trained = read(validation=True), read()
    assert (len(unread), len(trained)) == (16, 48) and not unread & trained
    assert len(training_rows(home / "examples", replace(config, epochs=2))) == 96 and len(training_rows(home / "examples", config, validation=True)) == 16


def test_chosen_tasks(tmp_path):
    examples = [replace(example, task=f"D{1 + k % 3}") for k, example in enumerate(colour_examples(9))]
    write_shards("examples", tmp_path / "examples", lambda shard, reject: examples)
    rows = lambda *tasks: training_rows(tmp_path / "examples", replace(PLAIN, tasks=tasks), cache=str(tmp_path))
    assert (len(rows()), len(rows("D1", "D3"))) == (9, 6)
    for tasks in (("D1", "E9"), ("E9",)):
        with pytest.raises(ValueError, match="E9.*correct .*tasks"): rows(*tasks)


def test_boxes_in_pixels_are_those_of_the_resized_picture(home):
    "The student sees 16 x 16 pixels; a box is written in these, whatever the size of the picture."
    from world2vlm.students.models import load_student, model_picture_size
    processor = load_student(str(home / "start"))[1]
    size = model_picture_size(processor, (64, 64))
    row = training_row(dict(question="Where?", answer="[500, 0, 1000, 1000]", images=[picture(True)]), "pixels", size)
    assert size == (16, 16) and row["completion"][0]["content"] == "[8, 0, 16, 16]"


def test_lora_is_for_the_language_model_where_the_vision_tower_is_frozen():
    from toy_training import TINY
    from world2vlm.students.models import mini_student
    trained = lambda **settings: {name for name, p in trainable(mini_student(["a"], TINY)[0], Training(**settings)).named_parameters() if p.requires_grad}
    assert any("visual" in name for name in trained()) and not any("visual" in name for name in trained(freeze_vision=True))
    lora = trained(freeze_vision=True, lora_rank=2, lora_alpha=4)
    assert lora and all("lora" in name and "visual" not in name for name in lora)


def test_torn_checkpoints_are_removed(tmp_path):
    for step, text in ((5, '{"global_step": 5}'), (10, '{"global_step": 10}'), (15, '{"global_st'), (20, None)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if text: (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(text)
    assert checkpoints._last_checkpoint(tmp_path).endswith("checkpoint-10")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-5"]


def test_a_checkpoint_of_several_processes_needs_the_state_of_each(tmp_path, monkeypatch):
    "Each writes its random state in its own time: a kill leaves one missing or torn beside a complete trainer_state.json."
    import torch
    for step in (5, 10, 15):
        (folder := tmp_path / f"checkpoint-{step}").mkdir()
        for rank in range(2): torch.save({"cpu": torch.get_rng_state()}, folder / f"rng_state_{rank}.pth")
        (folder / "trainer_state.json").write_text(f'{{"global_step": {step}}}')
    (torn := tmp_path / "checkpoint-10/rng_state_1.pth").write_bytes(torn.read_bytes()[:500])
    (tmp_path / "checkpoint-15/rng_state_1.pth").unlink()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert checkpoints._last_checkpoint(tmp_path).endswith("checkpoint-5") and len(list(tmp_path.iterdir())) == 1


@contextmanager
def full_disk(size: int):
    "The files of this process may grow to `size` bytes and no further."
    handler, (soft, hard) = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try: yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_is_one_plain_error_and_loses_nothing(home, tmp_path, one_thread, monkeypatch):
    "The run on a full disk stops at a checkpoint; the same call on a disk with space ends with the weights of an undisturbed one."
    monkeypatch.chdir(tmp_path)  # not a repository, whose database DVCLive would open
    config, out, undisturbed = replace(PLAIN, save_every=1, limit=16), tmp_path / "out", tmp_path / "undisturbed"
    with full_disk(60_000), pytest.raises(OSError, match=f"cannot write .*run again: '{out}'"): train_sft(config, home / "start", home / "examples", out)
    for folder in (out, undisturbed): train_sft(config, home / "start", home / "examples", folder)
    assert (out / "model.safetensors").read_bytes() == (undisturbed / "model.safetensors").read_bytes()
