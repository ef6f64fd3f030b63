"""From random weights to a small student that sees, names and locates, and answers in the formats of the tasks."""

# %%
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np

from ..core.config import Count, FieldOfView, LearningRate, NotNegative, repo_root, Seed, Settings, Share, Whole, Workers
from ..core.runs import read_jsonl, write_text
from .models import BoxFormat, mini_student, MiniConfig
from .packing import pack, PackedRow, Packer
from .training import _last_checkpoint, _save_student, live_callback, read_training_log, Training, trainer_arguments
from .view_pairs import PairMix, PairStream
from ..scenes.panoramas import TRAINING_PLACES, VALIDATION_PLACES
from ..tasks.answers import BOX_FORMATS, convert_boxes
from ..tasks.tasks import TASKS

# %%
@dataclass(frozen=True)
class Phase(Settings):
    "One run of the trainer on fresh rooms, with a learning rate that rises and falls."
    steps: Count  # optimizer steps
    batch_size: Count = 16  # pairs in one forward pass
    questions: Whole = 450  # characters of questions and answers about each pair; 0 trains the heads alone
    practice: Share = 0.2  # share of the questions in the forms of the tasks
    prompts_every: Whole = 0  # each n-th batch holds prompts of a benchmark or of the search; 0 for none
    learning_rate: LearningRate = 1.0e-3  # peak of the cosine

# %%
@dataclass(frozen=True)
class Base(Settings):
    "How the base student is trained from random weights."
    curriculum: tuple[Phase, ...] = (Phase(1000, 32, 0, learning_rate=2.0e-3), Phase(8000), Phase(4000, practice=.7, prompts_every=12))
    processes: Annotated[int, ">= 1", "<= 1024"] = 2  # that train together
    workers: Workers = 1  # processes that render ahead of each
    weight_decay: NotNegative = 0.01  # AdamW
    fov_deg: FieldOfView = 90.0  # horizontal field of view of the views
    panoramas: Share = 0.25  # share of the pairs that are real turns
    rooms: Count = 64  # from which each process draws at a time
    per_room: Count = 24  # pairs of each room
    box_format: BoxFormat = "pixels"  # how boxes are written
    seed: Seed = 0  # of weights, rooms and questions
    save_every: Count = 200  # steps between checkpoints
    check_every: Count = 200  # steps between checks of the heads on unseen places
    check_pairs: Count = 48  # of rooms, and of real places
    probe_rooms: Count = 128  # unseen rooms in which the result is probed

# %%
_BLANKS = dict(motion="move left 0.4 meters; turn right 30 degrees", object="the red chair", label="blue table", before="[1, 2, 3, 4]",
               after="[2, 3, 4, 5]", there="[2, 3, 4, 5]", place="left of the view", answer="false",
               truth="moved backward 0.4 meters, then turned left 30 degrees") | {"class": "sofa"}


def _task_texts() -> list[str]:  # with numbers and names filled in
    "How the tasks put their questions and write their answers."
    lines = []
    for task in TASKS.values():
        hints = task.instruction, task.sentence_instruction, "\nA. yes\nB. no\nC. true\nD. false\nAnswer with a letter."
        lines += [f"{BOX_FORMATS['norm1000']} {question.format(**_BLANKS)} {hint}" for question in task.questions for hint in hints]
        lines += [sentence.format(**_BLANKS) for sentence in task.sentences]
    return lines


def _tokenizer_texts(
    config: Base,  # seed, box format
    pairs: int = 160,  # whose questions are read
    prompts: int = 80,  # likewise
) -> list[str]:  # texts for `mini_student`
    "What the tokenizer learns from: static questions with their answers, prompts, and the wording of the tasks."
    stream = PairStream(config.seed, PairMix(600, .5, 0), fov_deg=config.fov_deg, rooms=8)
    lines = [text for k in range(pairs) for b in stream[k].branches for text in (b.question, b.answer)]
    for k in range(prompts):
        asked, answer = stream.prompt(k)[3:]
        lines += [asked.system, answer, *(piece for piece in asked.pieces if isinstance(piece, str))]
    return [convert_boxes(text, config.box_format, (64, 64)) for text in lines + _task_texts() * 30]

# %%
@dataclass(frozen=True)
class _PhaseRows:
    "The rows of one phase, each by its number alone; every loading process meets rooms of its own."
    config: Base  # how the student is trained
    number: int  # of the phase, from 0

    def __post_init__(self):
        config, phase = self.config, self.config.curriculum[self.number]
        mix = PairMix(phase.questions, phase.practice, config.panoramas)
        streams = [PairStream(config.seed + 1 + self.number + 1000 * k, mix, TRAINING_PLACES, fov_deg=config.fov_deg,
                              rooms=config.rooms, per_room=config.per_room) for k in range(config.processes * max(1, config.workers))]
        object.__setattr__(self, "streams", streams)

    def __len__(self) -> int: return self.phase.steps * self.phase.batch_size * self.config.processes

    @property
    def phase(self) -> Phase: return self.config.curriculum[self.number]

    def __getitem__(self, number: int) -> PackedRow:
        batch, row = divmod(int(number), self.phase.batch_size)
        batch, stream = divmod(batch, len(self.streams))
        every = self.phase.prompts_every
        read = self.streams[stream].prompt if every and batch % every == every - 1 else self.streams[stream].__getitem__
        return read(batch * self.phase.batch_size + row)

# %%
def _check_batches(
    config: Base,  # fov, number of pairs
    packer: Packer,  # of the student
) -> dict[str, dict]:  # "rooms" and "places" -> one batch
    "Pairs of unseen rooms with questions, and unseen real turns."
    mixes = {"rooms": PairMix(450, .3, 0, 0), "places": PairMix(0, 0, 1)}
    streams = {name: PairStream(10**6, mix, VALIDATION_PLACES, fov_deg=config.fov_deg, per_room=1) for name, mix in mixes.items()}
    return {name: pack(packer, [stream[k] for k in range(config.check_pairs)]) for name, stream in streams.items()}


def _phase_settings(
    config: Base,  # how the student is trained
    phase: Phase,  # one of its curriculum
) -> Training:  # all parameters, no checkpointing of activations
    "The settings of the trainer in `phase`."
    return Training(
        batch_size=phase.batch_size, gradient_accumulation_steps=1, learning_rate=phase.learning_rate, processes=config.processes,
        weight_decay=config.weight_decay, gradient_checkpointing=False, save_every=config.save_every, workers=config.workers,
        seed=config.seed)

# %%
def _train_phase(
    student: "DenseStudent",  # to be trained
    processor: "ProcessorMixin",  # of the student
    config: Base,  # how to train
    number: int,  # of the phase, from 0
    out: Path,  # folder of the checkpoints and of the result
) -> Path:  # `out`, which `DenseStudent.from_pretrained` opens
    "Train through one phase; a killed run resumes from the last checkpoint in `out`."
    from transformers import TrainingArguments
    from .dense_heads import DenseTrainer
    packer, phase = Packer(processor, config.box_format, MiniConfig().image_size), config.curriculum[number]
    arguments = TrainingArguments(**trainer_arguments(_phase_settings(config, phase), out, phase.steps),
                                  eval_strategy="steps", eval_steps=config.check_every)
    trainer = DenseTrainer(
        student, arguments, data_collator=partial(pack, packer), train_dataset=_PhaseRows(config, number),
        eval_dataset=_check_batches(config, packer), callbacks=[live_callback(out)] * (arguments.process_index == 0))
    trainer.train(resume_from_checkpoint=_last_checkpoint(out / "checkpoints"))
    return _save_student(trainer, processor, out)

# %%
def _joined_log(
    folders: list[Path],  # of finished phases
) -> list[dict]:  # lines with "phase", and steps that count on
    "The logs of all phases as one."
    lines, before = [], 0
    for number, folder in enumerate(folders):
        log = read_training_log(folder)
        lines += [line | dict(phase=number, step=line["step"] + before) for line in log]
        before += log[-1]["step"]
    return lines


def _join_phases(
    folders: list[Path],  # of finished phases
    processor: "ProcessorMixin",  # of the student
    out: Path,  # where the student goes, with the log of all
) -> Path:  # `out`
    "Save the last phase's student without its heads, write one log, remove the `folders`."
    from .dense_heads import DenseStudent
    DenseStudent.from_pretrained(folders[-1]).plain().save_pretrained(out)
    processor.save_pretrained(out)
    write_text(out / "log.jsonl", "".join(json.dumps(line, sort_keys=True) + "\n" for line in _joined_log(folders)))
    for folder in folders: shutil.rmtree(folder)
    return out

# %%
def train_base(
    config: Base,  # how the student is trained
    out: str | Path,  # folder of the checkpoint
) -> Path:  # `out`, which `load_student` opens
    "Train the base student from random weights; a killed run resumes."
    from accelerate import PartialState
    from .dense_heads import DenseStudent, with_heads
    plain, processor = mini_student(_tokenizer_texts(config), seed=config.seed)
    student = with_heads(plain, config.seed)
    folders = [Path(out) / f"phase-{number}" for number in range(len(config.curriculum))]
    for number, folder in enumerate(folders):
        if (folder / "log.jsonl").is_file(): continue
        if number: student = DenseStudent.from_pretrained(folders[number - 1])
        student.set_attn_implementation(dict(text_config="sdpa", vision_config="sdpa"))
        _train_phase(student, processor, config, number, folder)
    if (process := PartialState()).is_main_process: _join_phases(folders, processor, Path(out))
    process.wait_for_everyone()
    return Path(out)
