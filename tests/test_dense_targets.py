"Dense targets: what they say of a patch is what the simulator's pixels say; packed questions are read as if each stood alone."
import numpy as np
import pytest
import torch

from world2vlm.core.camera import intrinsics, move, project, transform, unproject, yaw
from world2vlm.students import dense_heads, dense_targets, packing, view_pairs
from world2vlm.students.dense_targets import COLOURS, KINDS, room_targets
from world2vlm.students.models import _batch_inputs, _for_student, mini_student, MiniConfig, Prompt
from world2vlm.students.view_pairs import PairStream

MIX = view_pairs._PairMix(400, .5, 0)


@pytest.fixture(scope="module")
def room(): return view_pairs._sample_room(7)


@pytest.fixture(scope="module")
def student(): return mini_student(["Where is the red chair in the second picture? [1, 2, 3, 4]"] * 9, MiniConfig(vocabulary=400))


@pytest.mark.parametrize("pair", [(0, 1), (3, 2), (5, 5)])
def test_flow_points_at_the_same_surface(room, pair):
    "The point in the first picture has the same place in the room and the same object, and everything visible is found."
    first, second = (room.views[k] for k in pair)
    poses = tuple(room.poses[k] for k in pair)
    targets = room_targets(tuple(room.known[k] for k in pair), (first.depth, second.depth), poses, room.K)
    points = [transform(pose, unproject(view.depth, room.K)) for pose, view in zip(poses, (first, second))]
    seen = targets["visible"] > 0
    x, y = (targets["flow"][seen] * 64).astype(int).T
    apart = np.linalg.norm(points[0][y, x] - points[1][4::8, 4::8][seen], axis=-1)
    assert (apart < .12 * second.depth[4::8, 4::8][seen] + .2).all()
    assert (first.ids[y, x] == second.ids[4::8, 4::8][seen]).mean() > .9  # feet touch the floor
    pixels, z = project(transform(np.linalg.inv(poses[0]), points[1][4::8, 4::8]), room.K)
    inside = (z > 0) & np.all((pixels >= 0) & (pixels < 64), -1)
    assert not (seen & ~inside).any()
    if pair == (5, 5): assert seen.all() and np.allclose(targets["flow"] * 64, np.stack(np.meshgrid(*[np.arange(4.5, 64, 8)] * 2), -1), atol=1e-3)


def test_what_a_patch_shows(room):
    "Shares of kinds and colours are those of the pixels; the box of a patch is that of its object."
    for view, known, objects in zip(room.views, room.known, room.objects):
        assert np.allclose(known.kind.sum(-1), 1) and np.allclose(known.colour.sum(-1), 1)
        assert np.allclose(known.kind[..., 0], (view.ids == 0).reshape(8, 8, 8, 8).mean((1, 3)), atol=1e-6)
        for o in objects:
            colour, kind = o.label.split()
            mine = known.main == o.id
            assert np.allclose(known.box[mine], o.box) and (known.kind[mine][:, KINDS.index(kind)] >= .25).all()
            assert (known.colour[mine][:, COLOURS.index(colour)] >= .25).all()
        assert np.allclose(known.depth, np.log(np.median(view.depth.reshape(8, 8, 8, 8).swapaxes(1, 2).reshape(8, 8, 64), -1)))


def test_unknown_targets_have_no_loss():
    turn = dense_targets._turn_targets((64, 64), intrinsics(64, 64, 90), yaw(20)[:3, :3])
    parts = {name: torch.zeros(2, 8, 8, n) for name, n in (("kind", 13), ("colour", 9), ("depth", 1), ("box", 4))}
    losses = dense_heads._picture_losses(parts, {name: torch.tensor(part) for name, part in turn.items()})
    assert set(losses) == {"kind", "colour", "depth", "box"} and all(float(loss) == 0 for loss in losses.values())


def test_losses_vanish_at_the_truth(room):
    targets = {name: torch.tensor(part)[None] for name, part in room_targets(
        (room.known[0], room.known[1]), (room.views[0].depth, room.views[1].depth), (room.poses[0], room.poses[1]), room.K).items()}
    parts = dict(flow=targets["flow"], visible=(200 * targets["visible"] - 100)[..., None], other_box=targets["other_box"])
    assert all(float(loss) < 1e-6 for loss in dense_heads._pair_losses(parts, targets).values())
    assert float(dense_heads._number_loss(100 * torch.eye(65)[[3, 60]], torch.tensor([3, 60]))) < 1e-6
    near, far = (float(dense_heads._number_loss(100 * torch.eye(65)[[k]], torch.tensor([30]))) for k in (31, 50))
    assert near == pytest.approx(1) and far == pytest.approx(20)  # as many pixels as it is off


def test_packed_questions_stand_alone(student):
    "Tokens, positions and hidden states of every packed question are those of the question asked alone."
    model, processor = student
    packer = packing._Packer(processor)
    row = next(row for row in map(PairStream(3, MIX, rooms=2).__getitem__, range(9)) if len({b.pictures for b in row.branches}) == 2)
    batch, sequence = packing._pack(packer, [row]), packing._pack_branches(packer, row)
    with torch.no_grad(): _, states, _ = dense_heads._read_tokens(model, batch)
    for branch, (start, end, seen) in zip(row.branches, sequence.blocks[1:]):
        prompt = _for_student(Prompt([*row.pictures[:branch.pictures], branch.question]), "pixels", processor)
        inputs = _batch_inputs(processor, [prompt])
        with torch.no_grad(): alone = model.model(**inputs)[0][0]
        n = inputs["input_ids"].shape[1] - seen
        assert inputs["input_ids"][0, seen:].tolist() == sequence.ids[start:start + n]
        assert sum(weight for at, *_, weight in sequence.labels if start <= at < end) == pytest.approx(1)  # of its answer
        assert torch.allclose(alone[seen:], states[0, start:start + n], atol=2e-5)


def test_the_head_that_is_taught_is_the_one_that_looks(student):
    "The share on the object is that of the model's own attention."
    model, processor = student
    stream = PairStream(3, MIX, rooms=2)
    batch = packing._pack(packing._Packer(processor), [stream[k] for k in range(2)])
    model.set_attn_implementation(dict(text_config="eager", vision_config="sdpa"))
    try:
        with torch.no_grad():
            merged = model.model.visual(batch["pixel_values"], grid_thw=batch["image_grid_thw"]).pooler_output
            embeds = model.model.get_input_embeddings()(batch["input_ids"])
            embeds = embeds.masked_scatter((batch["input_ids"] == model.config.image_token_id)[..., None], merged)
            bias = torch.zeros(batch["attention_mask"].shape).masked_fill(~batch["attention_mask"], -1e9)
            output = model.model.language_model(inputs_embeds=embeds, position_ids=batch["position_ids"], use_cache=False,
                                                attention_mask=bias, output_attentions=True)
            _, looked = dense_heads._look_loss(model, dense_heads._read_tokens(model, batch)[2], batch)
    finally: model.set_attn_implementation("sdpa")
    attention = output.attentions[dense_heads._LOOKING].transpose(1, 2).flatten(0, 1)[batch["look_at"], batch["look_head"]]
    tokens = batch["picture_at"][batch["point_picture"][batch["look_point"]] % 2]
    on_object = attention.gather(1, tokens) * (batch["token_shares"][batch["look_point"]] > 0)
    assert float(looked) == pytest.approx(float(on_object.sum(1).mean()), abs=1e-5)
    assert set(batch["look_head"].tolist()) == {0, 1} and len(batch["look_at"]) > 20  # a name, a place


def test_labels_are_the_answers(student):
    "Every answer is learned, its end included, and the numbers of boxes count as coordinates."
    _, processor = student
    packer = packing._Packer(processor)
    row = packing._PackedRow([np.zeros((64, 64, 3), np.uint8)] * 2, [
        packing._Branch("Where is it?", "[0, 250, 500, 1000]", 1), packing._Branch("How far?", "12 meters", 2)], {})
    sequence = packing._pack_branches(packer, row)
    tokens = [token for _, token, *_ in sequence.labels]
    assert processor.tokenizer.decode(tokens) == "[0, 16, 32, 64]<|im_end|>12 meters<|im_end|>"
    assert [value for *_, value, _ in sequence.labels if value >= 0] == [0, 16, 32, 64]


def test_a_pair_depends_on_its_number_alone():
    a, b = (PairStream(5, view_pairs._PairMix(300, .5), ("city",), rooms=2, per_room=2) for _ in range(2))
    for k, read in ((5, PairStream.__getitem__), (1, view_pairs._turn_row), (5, PairStream.__getitem__), (3, view_pairs._prompt_row)):
        x, y = read(a, k), read(b, k)
        assert [x.branches[i][:3] for i in range(len(x.branches))] == [branch[:3] for branch in y.branches]
        assert all((p == q).all() for p, q in zip(x.pictures, y.pictures))
        assert x.answer == y.answer and all(np.array_equal(x.targets[name], y.targets[name], equal_nan=True) for name in x.targets)
        b[0]
