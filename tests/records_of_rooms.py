"Scenes, rollouts and examples of four simulated rooms, and a comparison to the last bit, for the tests of the data sets."
import numpy as np

from world2vlm.core.actions import plan
from world2vlm.core.camera import Action
from world2vlm.core.records import transitions_of
from world2vlm.dataset.synthesis import _split_of
from world2vlm.scenes.room import room_scenes
from world2vlm.tasks.tasks import TASKS
from world2vlm.teachers.base import load_teacher


def imagine_turn(scene):
    [rollout] = load_teacher("simulator").imagine(scene, [plan([Action("turn_left", 20.0)])], seed=0)
    return rollout


def questions_of(scene):
    [transition] = transitions_of(scene, imagine_turn(scene))
    return [e for task in TASKS.values() for e in task.derive(transition, np.random.default_rng(0), split=_split_of(scene.id))]


SCENES = list(room_scenes(4, seed=0))
ITEMS = {"scenes": SCENES, "rollouts": [imagine_turn(s) for s in SCENES], "examples": [e for s in SCENES for e in questions_of(s)]}


def same(a, b):
    "Equal to the last bit, whatever the two hold."
    if isinstance(a, np.ndarray): return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if hasattr(a, "__dataclass_fields__"): return type(a) is type(b) and same(vars(a), vars(b))
    if isinstance(a, dict): return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)): return len(a) == len(b) and all(map(same, a, b))
    return a == b
