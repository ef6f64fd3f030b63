"""The prompts of a benchmark and of the search with a world model, practised on what single pictures show."""

# %%
from typing import NamedTuple

import numpy as np

from .models import Prompt
from .static_questions import _absent_label, _pick, _relation, VisibleObject
from ..core.actions import format_actions, Ranges, sample_actions

# %%
SAT_SYSTEM = ("You are an AI assistant designed to help with spatial reasoning in a 3D indoor scene. You must analyze any provided "
              "images or observations and answer the question.\n\n")


def sat_pieces(
    images: list,  # pictures, or paths of pictures
    question: str,  # about them
    choices: list[str] | tuple[str, ...],  # one of them is right
) -> list:  # texts and pictures in order
    "The baseline prompt of MindJourney."
    pieces = ["These are the images that pair with the question.\n"]
    for number, image in enumerate(images, 1): pieces += [f"Image {number}:", image]
    pieces += ["\nImage 1 is your current egocentric view\n", f"Question: {question}\n"]
    return [*pieces, "Answer Choices:\n" + "\n".join(choices) + "\n", "Output the exact answer from the choices.\nAnswer: "]

# %%
SCORE_CRITERIA = {
    "exploration": ("Score every imagined image from 0 to 9: how suitable is this place for exploring further, "
                    "so that the question can be answered?"),
    "helpful": ("Score every imagined image from 0 to 9: how helpful is it for answering the question? "
                "An image that only rules out a wrong answer is helpful too. An image of poor quality is not."),
}
_SCORER_SYSTEM = ("You are an AI assistant that analyzes and scores imagined images of a 3D indoor scene. {criterion} "
                  "Answer with whole numbers separated by commas, one for each image.\n\n")


def scoring_prompt(
    pictures: list[np.ndarray],  # of the question
    question: str,  # to be answered
    choices: list[str] | tuple[str, ...],  # its answers; may be empty
    views: list[tuple[str, np.ndarray]],  # caption and picture of each imagined view
    criterion: str,  # "exploration" or "helpful"
) -> Prompt:  # question, views, request for scores
    "The question, and all views with their captions."
    asked = f"\nQuestion: {question}\n" + "".join(f"  - {choice}\n" for choice in choices)
    captions = [f"Imagined image of index {k} if you {caption}:\n" for k, (caption, _) in enumerate(views)]
    candidates = [piece for caption, (_, view) in zip(captions, views) for piece in (caption, view)]
    return Prompt([*pictures, asked, "Below are the imagined views after taking actions.\n", *candidates,
                   "Output a list of scores.\nOutput: "], _SCORER_SYSTEM.format(criterion=SCORE_CRITERIA[criterion]))

# %%
def view_score(
    label: str,  # of the object that the question is about
    objects: list[VisibleObject],  # that the view shows
) -> int:  # 0 without it, 5 where the border cuts it, 9 where it is in view as a whole
    "How well a view shows an object."
    boxes = [o.box for o in objects if o.label == label]
    return max((9 if 0 < x1 and 0 < y1 and x2 < 1 and y2 < 1 else 5 for x1, y1, x2, y2 in boxes), default=0)


def _random_caption(
    rng: np.random.Generator,  # draws it
) -> str:  # "move forward 0.4 meters, and then turn left 30 degrees"
    "A motion that says nothing of the picture beside it."
    actions = sample_actions(rng, str(rng.choice(["single", "forward_turn", "turn_forward"])), Ranges((.2, 1.5, .1), (10, 60, 10)))
    return format_actions(actions).replace("; ", ", and then ")


def ask_scores(
    images: list[np.ndarray],  # views of a room, and of others
    objects: list[list[VisibleObject]],  # of each
    rng: np.random.Generator,  # draws the object and the words
) -> tuple[Prompt, str]:  # prompt, "9, 0, 5"
    "Ask how well each view but the first shows an object, in the words of the search."
    named = [o for view in objects for o in view]
    label = _pick(named, rng).label if named else _absent_label([], rng)
    forms = (f"Where is the {label}?", f"Is there a {label}?", f"How far is the {label}?", f"What is beside the {label}?")
    question, choices = _pick(forms, rng), ("yes", "no") if rng.random() < .3 else ()
    views = [(_random_caption(rng), image) for image in images[1:]]
    criterion = _pick(tuple(SCORE_CRITERIA), rng)
    return scoring_prompt(images[:1], question, choices, views, criterion), ", ".join(str(view_score(label, o)) for o in objects[1:])

# %%
def _static_choice(
    objects: list[VisibleObject],  # of the first picture, at least one
    second: list[VisibleObject] | None,  # of the second picture, if there is one
    rng: np.random.Generator,  # draws the question
) -> tuple[str, str, str] | None:  # question, right and wrong answer; None where it is too close to call
    "A question with two answers about what is where."
    a, b = _pick(objects, rng), _pick(objects, rng)
    if second is not None:
        both = any(o.id == a.id for o in second)
        return f"Is the {a.label} of image 1 also in image 2?", *(("yes", "no") if both else ("no", "yes"))
    if words := _relation(a, b, rng):
        side = words[0].endswith("of")
        question = f"How does the {a.label} lie to the {b.label}?" if side else f"Which is nearer, the {a.label} or the {b.label}?"
        if side: return question, *(f"it is {text} it" for text in words)
        return question, *((a.label, b.label) if words[0] == "nearer than" else (b.label, a.label))
    middle = (a.box[0] + a.box[2]) / 2
    if abs(middle - .5) < .1: return None
    return f"On which side is the {a.label}?", *(("on the left", "on the right") if middle < .5 else ("on the right", "on the left"))


def ask_sat(
    images: list[np.ndarray],  # one or two views of a room
    objects: list[list[VisibleObject]],  # of each
    rng: np.random.Generator,  # draws question and order
) -> tuple[Prompt, str] | None:  # prompt, the exact answer; None where there is nothing to ask
    "Ask in the words of the spatial benchmark: two choices, answered by their text."
    drawn = _static_choice(objects[0], objects[1] if len(objects) > 1 else None, rng) if objects[0] else None
    if drawn is None: return None
    question, answer, wrong = drawn
    choices = [(answer, wrong)[k] for k in rng.permutation(2)]
    return Prompt(sat_pieces(images, question, choices), SAT_SYSTEM), answer
