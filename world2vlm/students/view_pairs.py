"""Endless pairs of pictures with their dense targets: views of simulated rooms, and crops of real panoramas."""

# %%
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from .dense_targets import apart_targets, picture_targets, room_targets, turn_targets, view_targets, ViewTargets
from .packing import Branch, PackedRow
from .static_forms import ask_sat, ask_scores
from .static_questions import Asked, draw_question, objects_in_view, VisibleObject
from ..core.camera import Action, ACTION_KINDS, intrinsics, TURNS, yaw
from ..core.config import repo_root
from ..core.runs import rng_for
from ..scenes.panoramas import crop_panorama, read_panorama
from ..scenes.room import nearby_pose, Room, start_pose

# %%
@dataclass(frozen=True)
class RoomViews:
    "Views of one room, all near the first, with all that is known of them."
    views: list  # image, depth, ids
    poses: list[np.ndarray]  # [4, 4] camera to room
    known: list[ViewTargets]  # dense targets
    objects: list[list[VisibleObject]]  # of each view, from left to right
    K: np.ndarray  # [3, 3] pixels

# %%
def _view_poses(
    room: Room,  # where the cameras stand
    K: np.ndarray,  # [3, 3] pixels
    size: tuple[int, int],  # width and height, pixels
    rng: np.random.Generator,  # draws them
    views: int = 12,  # at most
) -> list[np.ndarray]:  # [4, 4] camera to room
    "A start, and poses near it: every other one is a single turn or a single move away from it."
    poses = [start_pose(room, rng, K, size)]
    for attempt in range(4 * (views - 1)):
        kind = ACTION_KINDS[rng.integers(len(ACTION_KINDS))]
        amount = float(rng.uniform(10, 60) if kind in TURNS else rng.uniform(.2, 1.5))
        pose = poses[0] @ Action(kind, amount).pose() if attempt % 2 else nearby_pose(poses[0], rng)
        if len(poses) < views and room.clear(pose): poses.append(pose)
    return poses


def sample_room(
    seed: int,  # of room and poses
    size: tuple[int, int] = (64, 64),  # width and height, pixels
    fov_deg: float = 90.0,  # horizontal field of view
    views: int = 12,  # at most
    tries: int = 20,  # rooms
) -> RoomViews:
    "Views of a random room. RuntimeError where none of the `tries` has a start pose."
    K = intrinsics(*size, fov_deg)
    for attempt in range(tries):
        rng = rng_for(seed, attempt)
        room = Room(int(rng.integers(2**31)))
        try: poses = _view_poses(room, K, size, rng, views)
        except ValueError: continue
        rendered = [room.render(pose, K, size) for pose in poses]
        return RoomViews(rendered, poses, [view_targets(view, room.instances) for view in rendered],
                         [objects_in_view(view, room.instances) for view in rendered], K)
    raise RuntimeError(f"room {seed}: none of {tries} rooms has a start pose; give a larger fov_deg")

# %%
def jitter_colours(
    picture: np.ndarray,  # uint8 [H, W, 3]
    rng: np.random.Generator,  # draws the change
    strength: float = 1.0,  # 0 changes nothing
) -> np.ndarray:  # uint8 [H, W, 3]
    "Another gamma, brightness and tint."
    gamma, brightness, tint = rng.normal(0, .2), rng.normal(0, .2), rng.normal(0, .08, 3)
    bright = (picture / np.float32(255)) ** np.float32(np.exp(strength * gamma))
    return (np.clip(bright * np.exp(strength * (brightness + tint)), 0, 1) * 255 + .5).astype(np.uint8)


@lru_cache
def _places(
    names: tuple[str, ...],  # of panoramas
    folder: str,  # where they are
) -> list[np.ndarray]:  # uint8 [H, 2 H, 3], each as it is and mirrored
    "The panoramas called `names`."
    pictures = [read_panorama(Path(folder) / f"{name}.png") for name in names]
    return [np.ascontiguousarray(picture[:, ::step]) for picture in pictures for step in (1, -1)]


def panorama_pair(
    places: list[np.ndarray],  # panoramas
    rng: np.random.Generator,  # draws place, directions and colours
    size: tuple[int, int] = (64, 64),  # width and height, pixels
    fov_deg: float = 90.0,  # horizontal field of view
    max_turn: float = 60.0,  # degrees
) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:  # two pictures uint8 [H, W, 3], their targets
    "Two views of a real place, between which the camera turned; their colours change together, and a little by themselves."
    place, heading, turn = places[rng.integers(len(places))], rng.uniform(0, 360), rng.uniform(-max_turn, max_turn)
    K, together = intrinsics(*size, fov_deg), int(rng.integers(2**31))
    pictures = [crop_panorama(place, angle, K, size) for angle in (heading, heading + turn)]
    pictures = [jitter_colours(jitter_colours(p, np.random.default_rng(together)), rng, .4) for p in pictures]
    return pictures, turn_targets(size, K, yaw(turn)[:3, :3])

# %%
def _patch_shares(
    ids: np.ndarray,  # [H, W] instance ids of a view
    target: int,  # one of them
    patch: int = 8,  # side, pixels
) -> np.ndarray:  # float32 [P * P], sums to one
    "How an object is spread over the patches."
    h, w = ids.shape
    share = (ids == target).reshape(h // patch, patch, w // patch, patch).mean((1, 3), dtype=np.float32)
    return (share / share.sum()).ravel()


def _as_branch(
    asked: Asked,  # a question
    pictures: int,  # how many it is about
    ids: tuple[np.ndarray, np.ndarray],  # [H, W] instance ids of each picture
) -> Branch:
    "The question with the patches of the object that it is about."
    return Branch(asked.question, asked.answer, pictures,
                  asked.target and (asked.target[0], _patch_shares(ids[asked.target[0]], asked.target[1])))


def _same_place(
    same: bool,  # the answer
) -> Branch:
    "Ask whether two pictures show the same place."
    return Branch("Do both pictures show the same place?", "yes" if same else "no", 2)

# %%
@dataclass(frozen=True)
class PairMix:
    "What a stream of pairs consists of."
    questions: int = 0  # characters of questions and answers about each pair
    practice: float = 0.0  # share of the questions in the forms of the tasks
    panoramas: float = .3  # share of the pairs that are real turns
    apart: float = .05  # share of the pairs that show two rooms
    from_start: float = .5  # share of the pairs of a room whose first view is the one that all others are near to


def room_row(
    room: RoomViews,  # of the first picture
    other: RoomViews,  # of the second
    mix: PairMix,  # how many questions, and of which form
    rng: np.random.Generator,  # draws views and questions
) -> PackedRow:
    "Two views with questions; where `other` is another room, they show two places."
    apart = room is not other
    i, j = rng.permutation(len(room.views))[:2]
    if apart: j = rng.integers(len(other.views))
    elif rng.random() < mix.from_start and j: i = 0
    views, known = (room.views[i], other.views[j]), (room.known[i], other.known[j])
    objects, branches = (room.objects[i], [] if apart else other.objects[j]), []
    while sum(len(b.question) + len(b.answer) for b in branches) < mix.questions:
        branches.append(_as_branch(*draw_question(*objects, rng, mix.practice), tuple(view.ids for view in views)))
    if branches and (apart or rng.random() < .1): branches.append(_same_place(not apart))
    targets = apart_targets(known) if apart else room_targets(known, tuple(view.depth for view in views), (room.poses[i], room.poses[j]), room.K)
    return PackedRow([view.image for view in views], branches, targets)

# %%
@dataclass(frozen=True)
class PairStream:
    "Pairs by number: the same seed and number give the same pair, whatever was read before."
    seed: int  # of rooms, views and questions
    mix: PairMix  # what the pairs are
    places: tuple[str, ...] = ()  # names of panoramas
    folder: str = "data/panoramas"  # where they are, in the repository
    fov_deg: float = 90.0  # horizontal field of view
    rooms: int = 64  # from which a pair is drawn; after `per_room` pairs a new one replaces the oldest
    per_room: int = 24  # pairs of each room
    _kept: dict = field(default_factory=dict, repr=False, compare=False)  # rooms that may be drawn again

    def room(self, number: int) -> RoomViews:  # `number` of a room; one of 2.2 GB hold 4,000 of them
        "Room `number`, rendered where it is not kept."
        if number not in self._kept:
            for old in [old for old in self._kept if abs(old - number) > 2 * self.rooms]: del self._kept[old]
            self._kept[number] = sample_room(int(rng_for(self.seed, "room", number).integers(2**31)), fov_deg=self.fov_deg)
        return self._kept[number]

    def __getitem__(self, number: int) -> PackedRow:  # `number` of a pair
        rng = rng_for(self.seed, "pair", number)
        if self.places and rng.random() < self.mix.panoramas:
            pictures, targets = panorama_pair(_places(self.places, str(repo_root() / self.folder)), rng, fov_deg=self.fov_deg)
            return PackedRow(pictures, [_same_place(True)] * bool(self.mix.questions and rng.random() < .3), targets)
        first, other = (number // self.per_room + int(k) for k in rng.permutation(self.rooms)[:2])
        return room_row(self.room(first), self.room(other if rng.random() < self.mix.apart else first), self.mix, rng)

    def prompt(self, number: int) -> PackedRow:  # `number` of a prompt
        "A prompt of the search or of a benchmark about views of one room, with its answer."
        rng = rng_for(self.seed, "prompt", number)
        while True:
            room = self.room(number // self.per_room + int(rng.integers(self.rooms)))
            scores = rng.random() < .5
            n = min(len(room.views), 1 + 3 * int(rng.integers(1, 4)) if scores else int(rng.integers(1, 3)))
            order = [int(k) for k in rng.permutation(len(room.views))[:n]]
            images, objects = [room.views[k].image for k in order], [room.objects[k] for k in order]
            if asked := (ask_scores if scores else ask_sat)(images, objects, rng):
                return PackedRow(images, [], picture_targets([room.known[k] for k in order]), *asked)
