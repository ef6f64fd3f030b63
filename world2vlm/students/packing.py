"""Several questions about the same pictures in one sequence, each of which sees the pictures and itself alone."""

# %%
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .dense_targets import PAIR_TARGETS
from .models import _chat_text, number_tokens, Prompt
from ..tasks.answers import convert_boxes

# %%
class Branch(NamedTuple):
    "A question that follows the pictures of its row."
    question: str  # boxes in norm1000
    answer: str  # likewise
    pictures: int  # how many of the row's pictures it sees, from the first
    target: tuple[int, np.ndarray] | None = None  # picture, and the share of each patch that the object in question covers


class PackedRow(NamedTuple):
    "Pictures and what is asked about them."
    pictures: list[np.ndarray]  # uint8 [H, W, 3]
    branches: list[Branch]  # independent of one another
    targets: dict[str, np.ndarray]  # of `room_targets`, `turn_targets` or `picture_targets`
    prompt: Prompt | None = None  # instead of branches: pieces in any order, with `answer`
    answer: str = ""  # to `prompt`

# %%
def _token_positions(
    ids: list[int],  # tokens, each picture of them expanded to `side` * `side`
    image_id: int,  # the token that stands for a part of a picture
    side: int,  # tokens per side of a picture
    start: int = 0,  # first position
) -> np.ndarray:  # int [3, len(ids) + 1] time, row, column; the last is where a text goes on
    "The positions of Qwen2.5-VL: a picture lies in a plane, and what follows goes on behind its far corner."
    rows, columns = np.divmod(np.arange(side * side), side)
    parts, at, i = [], start, 0
    while i < len(ids):
        if ids[i] == image_id:
            parts.append(at + np.stack([0 * rows, rows, columns]))
            at, i = at + side, i + side * side
        else:
            parts.append(np.full((3, 1), at))
            at, i = at + 1, i + 1
    return np.concatenate([*parts, np.full((3, 1), at)], 1)

# %%
class _Sequence(NamedTuple):
    "The tokens of one row."
    ids: list[int]
    positions: np.ndarray  # int [3, T]
    blocks: list[tuple[int, int, int]]  # start, end, and how many tokens of the start of the row it sees
    labels: list[tuple[int, int, int]]  # where a token is predicted, which, and its number in a box or -1
    points: list[tuple[int, int, np.ndarray]]  # where a question ends, picture, share of each patch

# %%
@dataclass
class Packer:
    "Turns rows into one batch; a trainer's collator."
    processor: Any  # of the student
    box_format: str = "pixels"  # how boxes are written
    side: int = 64  # of the pictures, pixels

    def __post_init__(self):
        images, self.tokenizer = self.processor.image_processor, self.processor.tokenizer
        self.cells = self.side // (images.patch_size * images.merge_size)  # tokens per side of a picture
        self.image_id = self.tokenizer.convert_tokens_to_ids(self.processor.image_token)
        self.value_of = number_tokens(self.tokenizer, self.side)
        blank = np.zeros((self.side, self.side, 3), np.uint8)
        chats = [_chat_text(self.processor, Prompt([blank] * n + ["?"])).split("?") for n in range(3)]
        self.prefixes, self.middle = [self.tokens(start) for start, _ in chats], chats[0][1]  # before and behind a question

    def tokens(
        self,
        text: str,  # boxes in norm1000, one token for each picture
    ) -> list[int]:  # boxes in the student's format, pictures expanded
        "The tokens of `text`."
        token = self.processor.image_token
        text = convert_boxes(text, self.box_format, (self.side, self.side)).replace(token, token * self.cells**2)
        return self.tokenizer(text)["input_ids"]

    def positions(
        self,
        ids: list[int],  # of `tokens`
        start: int = 0,  # first position
    ) -> np.ndarray:  # int [3, len(ids) + 1]; the last is where a text goes on
        "Where each token stands."
        return _token_positions(ids, self.image_id, self.cells, start)

    def labels(
        self,
        start: int,  # where the first token is predicted
        answer: list[int],  # its tokens
    ) -> list[tuple[int, int, int]]:  # see `_Sequence`
        "What is to be written; numbers between brackets are coordinates."
        labels, inside = [], False
        for i, (token, word) in enumerate(zip(answer, self.tokenizer.convert_ids_to_tokens(answer))):
            inside = (inside or "[" in word) and "]" not in word
            labels.append((start + i, token, self.value_of.get(token, -1) if inside else -1))
        return labels

# %%
def _pack_branches(
    packer: Packer,  # gives the tokens
    row: PackedRow,  # with branches
) -> _Sequence:
    "The pictures, then each question with its answer as if it alone followed them."
    ids = list(packer.prefixes[len(row.pictures)])
    positions, blocks, labels, points = [packer.positions(ids)[:, :-1]], [(0, len(ids), 0)], [], []
    for question, answer, n, target in row.branches:
        asked, written = packer.tokens(question + packer.middle), packer.tokens(answer + packer.tokenizer.eos_token)
        start, end = len(ids), len(ids) + len(asked) - 1  # the answer's first token is predicted at `end`
        ids += asked + written[:-1]
        at = packer.positions(packer.prefixes[n])[0, -1]
        positions.append(np.tile(np.arange(at, at + len(ids) - start), (3, 1)))
        blocks.append((start, len(ids), len(packer.prefixes[n])))
        labels += packer.labels(end, written)
        points += [(end, *target)] if target else []
    return _Sequence(ids, np.concatenate(positions, 1), blocks, labels, points)


def _pack_prompt(
    packer: Packer,  # gives the tokens
    row: PackedRow,  # with a prompt
) -> _Sequence:
    "One prompt with its answer."
    asked = packer.tokens(_chat_text(packer.processor, row.prompt))
    written = packer.tokens(row.answer + packer.tokenizer.eos_token)
    ids = asked + written[:-1]
    return _Sequence(ids, packer.positions(ids)[:, :-1], [(0, len(ids), 0)], packer.labels(len(asked) - 1, written), [])

# %%
def _block_mask(
    length: int,  # tokens of the longest row
    blocks: list[tuple[int, int, int]],  # of a `_Sequence`
) -> np.ndarray:  # bool [length, length] what each token sees
    "Each block sees itself up to now, and the start of the row; padding sees the first token."
    mask = np.zeros((length, length), bool)
    for start, end, seen in blocks:
        mask[start:end, start:end] = np.tri(end - start, dtype=bool)
        mask[start:end, :seen] = True
    mask[blocks[-1][1]:, 0] = True
    return mask


def _gathered(
    sequences: list[_Sequence],  # of a batch
    length: int,  # tokens of the longest
    pictures: list[int],  # number of pictures of each row
    patches: int,  # of a picture
) -> dict[str, np.ndarray]:  # labels and points of the whole batch
    "Labels and points, with their places in the flattened batch."
    first = np.cumsum([0, *pictures])
    labels = [(k * length + at, token, value) for k, s in enumerate(sequences) for at, token, value in s.labels]
    points = [(k * length + at, first[k] + picture, share) for k, s in enumerate(sequences) for at, picture, share in s.points]
    at, token, value = np.array(labels, int).reshape(-1, 3).T
    shares = np.array([share for *_, share in points], np.float32).reshape(len(points), patches)
    return dict(label_at=at, labels=token, numbers=value, point_at=np.array([p[0] for p in points], int),
                point_picture=np.array([p[1] for p in points], int), point_shares=shares)


def _stack_targets(
    rows: list[PackedRow],  # of a batch
) -> dict[str, np.ndarray]:  # [pictures, ...] what each shows, [rows, ...] what is known of each pair
    "The dense targets of a batch."
    parts = {name: [row.targets[name] for row in rows] for name in rows[0].targets}
    return {name: np.stack(arrays) if name in PAIR_TARGETS else np.concatenate(arrays) for name, arrays in parts.items()}


def pack(
    packer: Packer,  # gives the tokens
    rows: list[PackedRow],  # all with branches, or all with prompts
) -> dict:  # tensors for `DenseStudent.forward`
    "One batch."
    import torch
    sequences = [_pack_prompt(packer, row) if row.prompt else _pack_branches(packer, row) for row in rows]
    n, length = len(rows), max(len(s.ids) for s in sequences)
    ids, positions = np.full((n, length), packer.tokenizer.pad_token_id), np.zeros((3, n, length), int)
    for k, s in enumerate(sequences): ids[k, :len(s.ids)], positions[:, k, :len(s.ids)] = s.ids, s.positions
    images = packer.processor.image_processor([p for row in rows for p in row.pictures], return_tensors="pt")
    counts = [len(row.pictures) for row in rows]
    patches = int(images["image_grid_thw"][0].prod())
    arrays = dict(input_ids=ids, position_ids=positions, attention_mask=np.stack([_block_mask(length, s.blocks) for s in sequences])[:, None],
                  number_ids=np.array(list(packer.value_of), int), **_gathered(sequences, length, counts, patches), **_stack_targets(rows))
    if "flow" in arrays: arrays["second_at"] = np.flatnonzero(np.array(packer.prefixes[2]) == packer.image_id)[-packer.cells**2:]
    return {name: torch.from_numpy(array) for name, array in arrays.items()} | dict(images)
