"""Questions about one view or two that teach the small student names, places and forms of answers before it learns motion."""

# %%
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ..core.actions import format_actions, Ranges, sample_actions
from ..scenes.furniture import FURNITURE, OBJECT_COLOURS
from ..tasks.answers import (AnswerType, BOX_ANSWER, BOX_FORMATS, format_box, letter_options, MOTION_ANSWER, ONE_SENTENCE,
                             TRUE_FALSE, YES_NO)
from ..tasks.rewards import BOX_PATTERN
from ..tasks.tasks import TASKS

# %%
class VisibleObject(NamedTuple):
    "An object as one view shows it."
    id: int  # instance id in its room
    label: str  # "red chair"
    box: tuple[float, float, float, float]  # xyxy, share of the picture, [0, 1]
    distance: float  # median z-depth of its visible pixels, metres

    @property
    def kind(self) -> str: return self.label.split()[-1]

    @property
    def place(self) -> str: return format_box(self.box)

# %%
def objects_in_view(
    view: "View",  # image, depth and ids
    labels: dict[int, str],  # instance id -> label
    min_area: float = .006,  # share of the picture that counts as visible
) -> list[VisibleObject]:  # from left to right
    "The objects that cover at least `min_area` of `view`."
    h, w = view.ids.shape
    objects = []
    for i in np.unique(view.ids):
        ys, xs = np.nonzero(view.ids == i)
        if i and len(xs) >= min_area * h * w:
            box = (xs.min() / w, ys.min() / h, (xs.max() + 1) / w, (ys.max() + 1) / h)
            objects.append(VisibleObject(int(i), labels[int(i)], box, float(np.median(view.depth[ys, xs]))))
    return sorted(objects, key=lambda o: (o.box[0] + o.box[2], o.id))

# %%
class Asked(NamedTuple):
    "A question with its answer."
    question: str  # boxes in norm1000
    answer: str  # likewise
    target: tuple[int, int] | None = None  # picture, 0 or 1, and id of the object in question; None where it is none or many

# %%
LETTER = "Answer with a letter."  # as the tasks ask for it


def _stated(
    question: str,  # about boxes or not
) -> str:  # the same, with the line that says how boxes are written where it has one
    "`question` as the tasks put it."
    return f"{BOX_FORMATS['norm1000']} {question}" if BOX_PATTERN.search(question) or "box" in question else question


def _phrased(
    rng: np.random.Generator,  # draws the form and the letters
    question: str,  # without the line that says how to answer
    hints: tuple[str, str],  # that ask for a short answer, and for a sentence
    answer: str,  # short
    sentence: str,  # the answer as a sentence
    wrong: list[str],  # other short answers; where there are three, letters may be asked for
) -> tuple[str, str]:  # question, answer
    "Ask in one of the tasks' three forms: a short answer, a sentence, a letter."
    form = rng.integers(3 if len(wrong) in (1, 3) else 2)
    if form < 2: return _stated(f"{question} {hints[form]}"), (answer, sentence)[form]
    options, letter = letter_options([answer, *wrong], rng)
    return _stated("\n".join([question, *(f"{k}. {v}" for k, v in options.items()), LETTER])), letter


def _in_form(
    rng: np.random.Generator,  # draws the form
    practice: float,  # share of the questions in the forms of the tasks
    target: tuple[int, int] | None,  # picture and id of the object in question
    question: str,  # as for `_phrased`
    *form: "tuple | str | list",  # hints, answer, sentence and wrong answers
) -> Asked:
    "The bare question, or one of the tasks' forms of it."
    if rng.random() < practice: return Asked(*_phrased(rng, question, *form), target)
    return Asked(question, form[1], target)


BOX_HINTS = BOX_ANSWER.instruction, BOX_ANSWER.sentence_instruction
SHORT_HINTS = "Answer in a few words.", ONE_SENTENCE
VERDICT_HINTS = YES_NO.instruction, TASKS["D2"].sentence_instruction

# %%
def _pick(
    objects: list,  # at least one
    rng: np.random.Generator,  # draws it
) -> "VisibleObject | tuple":
    "Any of `objects`."
    return objects[rng.integers(len(objects))]


def _wrong_boxes(
    target: VisibleObject,  # with the right box
    objects: list[VisibleObject],  # of the same view
    rng: np.random.Generator,  # draws them
) -> list[str]:  # three
    "Boxes of other objects, and beside `target` where there are too few."
    others = [o.place for o in objects if o.id != target.id and o.place != target.place]
    x1, y1, x2, y2 = target.box
    moved = [format_box((x1 + d, y1, x2 + d, y2)) for d in (.3, -.3, .2, -.2, .4, -.4) if 0 <= x1 + d and x2 + d <= 1]
    moved += [format_box(box) for box in ((0, y1, x2 / 2, y2), (x1, y1 / 2, x2, y2 / 2), ((1 + x1) / 2, y1, 1, y2))]
    pool = list(dict.fromkeys([others[i] for i in rng.permutation(len(others))] + moved))
    return [text for text in pool if text != target.place][:3]


def _absent_label(
    objects: list[VisibleObject],  # of one view
    rng: np.random.Generator,  # draws colour and furniture
) -> str:  # a label of the simulator that names none of `objects`
    "Draw the name of an object that is not in the view, in half of the cases one with a kind or colour that is."
    present = {o.label for o in objects}
    colours, kinds = list(OBJECT_COLOURS), list(FURNITURE)
    while True:
        colour, kind = str(rng.choice(colours)), str(rng.choice(kinds))
        if objects and rng.random() < .5:
            near = _pick(objects, rng).label.split()
            colour, kind = (near[0], kind) if rng.random() < .5 else (colour, near[1])
        if f"{colour} {kind}" not in present: return f"{colour} {kind}"

# %%
def _ask_location(
    objects: list[VisibleObject],  # of one view
    rng: np.random.Generator,  # draws object and form
    practice: float = 0.0,  # share in the forms of the tasks
) -> Asked:
    "Ask for the box of an object."
    o = _pick(objects, rng)
    return _in_form(rng, practice, (0, o.id), f"Where is the {o.label}?", BOX_HINTS, o.place, f"It is at {o.place}.",
                    _wrong_boxes(o, objects, rng))


def _ask_identity(
    objects: list[VisibleObject],  # of one view
    rng: np.random.Generator,  # draws object and form
    practice: float = 0.0,  # share in the forms of the tasks
) -> Asked:
    "Ask what is in a box."
    o = _pick(objects, rng)
    wrong = [_absent_label(objects, rng) for _ in range(3)]
    return _in_form(rng, practice, (0, o.id), f"What is at {o.place}?", SHORT_HINTS, o.label, f"It is a {o.label}.", wrong)


def _ask_listing(
    objects: list[VisibleObject],  # of one view
    rng: np.random.Generator,  # unused
    practice: float = 0.0,  # unused
) -> Asked:
    "Ask for all objects with their boxes."
    return Asked("List the objects.", "; ".join(f"{o.label} {o.place}" for o in objects))


def _ask_distance(
    objects: list[VisibleObject],  # of one view
    rng: np.random.Generator,  # draws object and form
    practice: float = 0.0,  # share in the forms of the tasks
) -> Asked:
    "Ask how far away an object is, in metres with one decimal."
    o = _pick(objects, rng)
    text = lambda metres: f"{metres:.1f} meters"
    wrong = [text(o.distance * factor) for factor in (.6, 1.5, 2.2)]
    return _in_form(rng, practice, (0, o.id), f"How far is the {o.label}?", SHORT_HINTS, text(o.distance),
                    f"It is {text(o.distance)} away.", wrong)


def _ask_presence(
    objects: list[VisibleObject],  # of one view; may be empty
    rng: np.random.Generator,  # draws answer, object and form
    practice: float = 0.0,  # share in the forms of the tasks
) -> Asked:
    "Ask whether an object is in the view: yes or no."
    o = _pick(objects, rng) if objects and rng.random() < .5 else None
    answer, wrong = ("yes", "no") if o else ("no", "yes")
    label, place = (o.label, f"at {o.place}") if o else (_absent_label(objects, rng), "not in view")
    return _in_form(rng, practice, o and (0, o.id), f"Is there a {label}?", VERDICT_HINTS, answer,
                    f"It is {place}, so {answer}.", [wrong])

# %%
def _relation(
    a: VisibleObject,  # of one view
    b: VisibleObject,  # of the same view
    rng: np.random.Generator,  # draws whether places or distances are compared
) -> tuple[str, str] | None:  # true words and false words; None where they hardly differ
    "How two objects of a view lie to each other."
    right = a.box[0] + a.box[2] - b.box[0] - b.box[2]
    words = ("left of", "right of") if rng.random() < .6 else ("nearer than", "farther than")
    first = right < 0 if words[0] == "left of" else a.distance < b.distance
    clear = abs(right) > .2 if words[0] == "left of" else max(a.distance, b.distance) > 1.2 * min(a.distance, b.distance)
    return (words if first else words[::-1]) if clear else None


def _ask_claim(
    objects: list[VisibleObject],  # of one view
    rng: np.random.Generator,  # draws objects, truth and form
    practice: float = 0.0,  # share in the forms of the tasks
) -> Asked | None:
    "Claim something about one picture: true or false."
    o, other, true = _pick(objects, rng), _pick(objects, rng), bool(rng.random() < .5)
    answer, wrong = ("true", "false") if true else ("false", "true")
    words = _relation(o, other, rng) if rng.random() < .5 else None
    if words: claim = f"the {o.label} is {words[not true]} the {other.label}"
    else: claim = f"the {o.label} is at {o.place if true else _wrong_boxes(o, objects, rng)[0]}"
    reason = f"It is {words[0]} the {other.label}" if words else f"It is at {o.place}"
    hints = TRUE_FALSE.instruction, ONE_SENTENCE
    return _in_form(rng, max(practice, .5), (0, o.id), f"Claim: {claim}.", hints, answer,
                    f"{reason}, so the claim is {answer}.", [wrong])

# %%
def common_objects(
    first: list[VisibleObject],  # of one view
    second: list[VisibleObject],  # of another view of the same room
) -> list[tuple[VisibleObject, VisibleObject]]:  # the same object in the first and in the second
    "The objects that both views show."
    after = {o.id: o for o in second}
    return [(o, after[o.id]) for o in first if o.id in after]


def _ask_pairing(
    first: list[VisibleObject],  # of one view
    second: list[VisibleObject],  # of another view of the same room
    rng: np.random.Generator,  # unused
    practice: float = 0.0,  # unused
) -> Asked | None:  # None where no object is in both
    "Ask for the objects of both views with their boxes in the first and in the second."
    lines = [f"{a.label} {a.place} {b.place}" for a, b in common_objects(first, second)]
    return Asked("Which objects are in both pictures?", "; ".join(lines)) if lines else None


def _ask_second_box(
    first: list[VisibleObject],  # of one view
    second: list[VisibleObject],  # of another view of the same room
    rng: np.random.Generator,  # draws object and form
    practice: float = 0.0,  # share in the forms of the tasks
) -> Asked | None:  # None where no object is in both
    "Ask where an object of the first view, by name or by box, is in the second."
    common = common_objects(first, second)
    if not common: return None
    before, after = _pick(common, rng)
    name = f"the {before.label}" if rng.random() < .5 else f"the {before.kind} at {before.place}"
    return _in_form(rng, practice, (1, after.id), f"Where is {name} in the second picture?", BOX_HINTS, after.place,
                    f"It is then at {after.place}.", _wrong_boxes(after, second, rng))


def _ask_same(
    first: list[VisibleObject],  # of one view
    second: list[VisibleObject],  # of another view of the same room
    rng: np.random.Generator,  # draws objects and form
    practice: float = 0.0,  # share in the forms of the tasks
) -> Asked | None:  # None where there is nothing to compare
    "Ask whether a box of the first view and one of the second show the same object."
    common = common_objects(first, second)
    if not common or len(second) < 2: return None
    (before, after), same = _pick(common, rng), bool(rng.random() < .5)
    others = [o for o in second if o.id != before.id]
    alike = [o for o in others if o.kind == before.kind] or others
    compared = after if same else _pick(alike, rng)
    answer, wrong = ("yes", "no") if same else ("no", "yes")
    question = f"Is the {before.kind} at {before.place} the one at {compared.place} in the second picture?"
    return _in_form(rng, practice, (1, after.id), question, (YES_NO.instruction, TASKS["D4"].sentence_instruction), answer,
                    f"It is then at {after.place}, so {answer}.", [wrong])

# %%
def _image_shift(
    pairs: list[tuple[VisibleObject, VisibleObject]],  # the same objects in the first and in the second view
    grid: int = 16,  # columns and rows
) -> tuple[float, float]:  # cells to the right, logarithm of the growth of the area
    "The median shift of objects on a `grid`, and the median growth."
    before, after = np.array([[o.box for o in pair] for pair in pairs]).swapaxes(0, 1)  # [n, 4] each
    right = np.median(after[:, 0] + after[:, 2] - before[:, 0] - before[:, 2]) / 2 * grid
    growth = np.median(np.log(np.prod(after[:, 2:] - after[:, :2], -1) / np.prod(before[:, 2:] - before[:, :2], -1)))
    return float(right), float(growth)


def _change_options(
    pairs: list[tuple[VisibleObject, VisibleObject]],  # the same objects in the first and in the second view
    shift: bool,  # whether the shift is in question, or the growth
    rng: np.random.Generator,  # draws the wrong amount
) -> list[str] | None:  # four, the true one first; None where the change is too small
    "How objects changed, and three other answers: the opposite direction, another amount, both."
    right, growth = _image_shift(pairs)
    factor = round(float(np.sign(growth) * np.exp(abs(growth) / 2)), 1)
    if shift: words, size, step, unit = ("left", "right"), round(right), 3, ""
    else: words, size, step, unit = ("smaller", "larger"), factor, .5, " times"
    if abs(size) < (1 if shift else 1.1): return None
    wrong = abs(size) + step if abs(size) <= step or rng.random() < .5 else abs(size) - step
    opposite, direction = words if size > 0 else words[::-1]
    return [f"{word} {amount:g}{unit}" for amount in (abs(size), wrong) for word in (direction, opposite)]


_CHANGE_QUESTIONS = {True: "Which way did {} shift, and how far?", False: "Did {} get smaller or larger, and how much?"}


def _ask_change(
    first: list[VisibleObject],  # of one view
    second: list[VisibleObject],  # of another view of the same room
    rng: np.random.Generator,  # draws object, change and form
    practice: float = 0.0,  # share in the forms of the tasks
) -> Asked | None:  # None where nothing common changed enough
    "Ask in which direction an object, or all, shifted in the picture, or how much larger it became."
    common = common_objects(first, second)
    if not common: return None
    pairs = common if rng.random() < .5 else [_pick(common, rng)]
    options = _change_options(pairs, shift := bool(rng.random() < .65), rng)
    if options is None: return None
    subject, verb = "the picture" if pairs is common else f"the {pairs[0][0].label}", "shifted" if shift else "got"
    target, (answer, *wrong) = None if pairs is common else (1, pairs[0][0].id), options
    if rng.random() < .25:
        true = bool(rng.random() < .5)
        verdict = "true" if true else "false"
        claim = f"Claim: {subject} {verb} {answer if true else _pick(wrong, rng)}."
        reason = f"It {verb} {answer}, so the claim is {verdict}."
        hints = TRUE_FALSE.instruction, TASKS["A4"].sentence_instruction.replace("motion", "change")
        return _in_form(rng, max(practice, .5), target, claim, hints, verdict, reason, ["false" if true else "true"])
    return _in_form(rng, practice, target, _CHANGE_QUESTIONS[shift].format(subject), SHORT_HINTS, answer, f"It {verb} {answer}.", wrong)

# %%
def _box_area(
    box: np.ndarray,  # [2, 2] corners
) -> float:  # share of the picture
    "The area of `box`."
    return float(np.prod(box[1] - box[0]))


def _displaced(
    box: np.ndarray,  # [2, 2] corners, shares of the picture
    change: str,  # "left", "right", "larger" or "smaller"
    amount: float,  # columns, or a factor
    grid: int = 16,  # columns
) -> tuple[str, np.ndarray]:  # "shifts left 3", [2, 2] corners, also outside
    "A box after a change, in words and numbers; growth is around the centre of the picture."
    if change in ("left", "right"):
        return f"shifts {change} {amount}", box + [(1 if change == "right" else -1) * amount / grid, 0]
    return f"gets {change} {amount:g} times", .5 + (box - .5) * (amount if change == "larger" else 1 / amount)


def _draw_displacement(
    box: np.ndarray,  # [2, 2] corners, shares of the picture
    rng: np.random.Generator,  # draws the change and its amount
    grid: int = 16,  # columns
) -> tuple[str, np.ndarray, str]:  # "shifts left 3", [2, 2] corners within the picture, where it went if it left it, else ""
    "Shift or scale `box` at random; less than 5 % of its area inside counts as having left."
    steps, factor = int(rng.integers(1, grid - 1)), round(float(rng.uniform(1.1, 2.5)), 1)
    change = str(rng.choice(["left", "right", "larger", "smaller"], p=[.35, .35, .15, .15]))
    text, after = _displaced(box, change, steps if change in ("left", "right") else factor, grid)
    visible, (x, y) = np.clip(after, 0, 1), after.mean(0)
    gone = _box_area(visible) < .05 * _box_area(after)
    place = "left of" if x < 0 else "right of" if x > 1 else "above" if y < 0 else "below"
    return text, visible, f"{place} the view" if gone else ""


def _ask_imagined_shift(
    objects: list[VisibleObject],  # of one view
    rng: np.random.Generator,  # draws object, change and form
    practice: float = 0.0,  # share in the forms of the tasks
) -> Asked:
    "Ask where an object would be, or whether it would leave the picture, if everything shifted or grew."
    o = _pick(objects, rng)
    text, box, gone = _draw_displacement(np.reshape(o.box, (2, 2)), rng)
    place, name = format_box(box.ravel()), f"the {o.label}" if rng.random() < .5 else f"the {o.kind} at {o.place}"
    if gone or rng.random() < .3:
        answer, wrong = ("yes", "no") if gone else ("no", "yes")
        question = f"The picture {text}. Does {name} disappear from view?"
        return _in_form(rng, max(.5, practice), (0, o.id), question, VERDICT_HINTS, answer,
                        f"It is then {gone or f'at {place}'}, so {answer}.", [wrong])
    moved = VisibleObject(0, "", tuple(box.ravel()), 0)
    return _in_form(rng, practice, (0, o.id), f"The picture {text}. Where is {name} then?", BOX_HINTS, place,
                    f"It is then at {place}.", _wrong_boxes(moved, [], rng))

# %%
def _repeat_motion(
    first: list[VisibleObject],  # unused
    second: list[VisibleObject],  # unused
    rng: np.random.Generator,  # draws motion and form
    practice: float = 0.0,  # unused
) -> Asked:
    "Ask to repeat a random motion, which the pictures beside it do not show."
    presets, ranges = ["single", "single", "forward_turn", "turn_forward", "shift_forward_turn"], Ranges((.2, 1.5, .1), (10, 60, 10))
    draw = lambda: sample_actions(rng, str(rng.choice(presets)), ranges)
    motion, *others = (draw() for _ in range(4))
    text, wrong = format_actions(motion), list(dict.fromkeys(format_actions(other) for other in others))
    if len(set([text, *wrong])) < 4: wrong = []
    hints = MOTION_ANSWER.instruction, MOTION_ANSWER.sentence_instruction
    sentence = MOTION_ANSWER.sentences[0].format(answer=MOTION_ANSWER.phrase(motion))
    return Asked(*_phrased(rng, f"Repeat: {text}.", hints, text, sentence, wrong))

# %%
class Question(NamedTuple):
    "One kind of question."
    ask: Callable  # (objects of the first view, [objects of the second view,] rng, practice) -> Asked, or None
    pictures: int  # 1 or 2
    share: float  # how often it is drawn


QUESTIONS = {
    # about one view
    "locate": Question(_ask_location, 1, .18), "identify": Question(_ask_identity, 1, .06), "listing": Question(_ask_listing, 1, .08),
    "far": Question(_ask_distance, 1, .05), "present": Question(_ask_presence, 1, .08), "claim": Question(_ask_claim, 1, .06),
    "suppose": Question(_ask_imagined_shift, 1, .11),
    # about two views
    "pairing": Question(_ask_pairing, 2, .05), "refind": Question(_ask_second_box, 2, .16), "same": Question(_ask_same, 2, .06),
    "slide": Question(_ask_change, 2, .07),
    # words only
    "repeat": Question(_repeat_motion, 2, .04)}


def draw_question(
    first: list[VisibleObject],  # of one view; may be empty
    second: list[VisibleObject],  # of another view of the same room
    rng: np.random.Generator,  # draws the kind and its question
    practice: float = 0.0,  # share in the forms of the tasks
    tries: int = 20,  # until two views allow the kind that is drawn
) -> tuple[Asked, int]:  # and the number of pictures that it is about
    "Draw one question; where two views do not allow it, draw again, and ask about presence in the end."
    names, p = list(QUESTIONS), np.array([question.share for question in QUESTIONS.values()])
    for _ in range(tries):
        ask, pictures, _ = QUESTIONS[names[rng.choice(len(names), p=p / p.sum())]]
        needs_objects = ask not in (_ask_presence, _repeat_motion)
        asked = None if needs_objects and not first else ask(*(first, second)[:pictures], rng, practice)
        if asked: return asked, pictures
    return _ask_presence(first, rng, practice), 1
