"Records: a scene refuses parts that do not fit together."
import numpy as np
import pytest

from world2vlm.core.camera import intrinsics
from world2vlm.core.records import Instance, RoomPose, Scene

IMAGE, K = np.zeros((4, 6, 3), np.uint8), intrinsics(6, 4, 60)


@pytest.mark.parametrize("change, message", [
    (dict(id=""), "scene id"), (dict(image=IMAGE.astype(float)), "array of uint8"), (dict(image=IMAGE[..., 0]), "expected shape"),
    (dict(K=np.eye(4)), "3 rows"), (dict(depth=np.ones((4, 6))), "array of float32"), (dict(depth=np.ones((6, 4), np.float32)), "expected shape"),
    (dict(depth=np.full((4, 6), -1, np.float32)), "negative"), (dict(depth=np.full((4, 6), np.inf, np.float32)), "infinite"),
    (dict(instances=[Instance(1, "red chair", np.ones((2, 2), bool))]), "mask of red chair"),
    (dict(instances=[Instance(1, w, np.ones((4, 6), bool)) for w in ("red chair", "blue ball")]), "used twice")])
def test_scene_refuses(change, message):
    with pytest.raises(ValueError, match=message): Scene(**{"id": "x", "image": IMAGE, "K": K, **change})


@pytest.mark.parametrize("make, message", [
    (lambda: Instance(0, "red chair", np.ones((2, 2), bool)), "expected an int >= 1"), (lambda: Instance(1, " ", np.ones((2, 2), bool)), "label"),
    (lambda: Instance(1, "red chair", np.ones((2, 2))), "array of bool"), (lambda: RoomPose(-1, np.eye(4)), "room seed"),
    (lambda: RoomPose(1, np.zeros((4, 4))), "room pose")])
def test_parts_refuse(make, message):
    with pytest.raises(ValueError, match=message): make()
