"""Linear heads that read a student's own tokens, and the losses that teach it to see; thrown away after pretraining."""

# %%
from collections import Counter

import torch
from torch import nn
from torch.nn import functional as F
from transformers import Qwen2_5_VLForConditionalGeneration, Trainer

from .dense_targets import COLOURS, KINDS

# %%
_DESCRIPTOR = 32  # numbers that describe a patch
_SHARPNESS = 10.0  # of the comparison of two descriptors
_PICTURE_PARTS = dict(kind=len(KINDS), colour=len(COLOURS), depth=1, box=4, descriptor=_DESCRIPTOR)  # numbers for each patch
_PAIR_PARTS = dict(flow=2, visible=1, other_box=4)
LOSS_WEIGHTS = dict(text=1.0, number=.1, point=1.0, kind=1.0, colour=1.0, depth=1.0, box=4.0, match=1.0, flow=4.0, visible=1.0,
                    other_box=4.0)

# %%
def _by_patch(
    tokens: torch.Tensor,  # [N, T, merge * merge * C] one line for each merged token
    merge: int,  # patches per side of a token
) -> torch.Tensor:  # [N, P, P, C]
    "The output of a head, patch by patch."
    side = int(tokens.shape[1]**.5)
    cells = tokens.reshape(len(tokens), side, side, merge, merge, -1).transpose(2, 3)
    return cells.reshape(len(tokens), side * merge, side * merge, -1)


class _DenseHeads(nn.Module):
    "A linear layer on the vision tower's tokens, one on the last hidden states at the second picture, and one that points."
    def __init__(self, hidden: int, merge: int):  # width of the student, patches per side of a token
        super().__init__()
        self.merge = merge
        self.pictures = nn.Linear(hidden, merge**2 * sum(_PICTURE_PARTS.values()))
        self.pair = nn.Linear(hidden, merge**2 * sum(_PAIR_PARTS.values()))
        self.pointer = nn.Linear(hidden, _DESCRIPTOR)

    def read(
        self,
        name: str,  # "pictures" or "pair"
        tokens: torch.Tensor,  # [N, T, D]
    ) -> dict[str, torch.Tensor]:  # part -> [N, P, P, C]
        "What the tokens say of each patch."
        parts = _PICTURE_PARTS if name == "pictures" else _PAIR_PARTS
        cells = _by_patch(getattr(self, name)(tokens).float(), self.merge)
        return dict(zip(parts, cells.split(list(parts.values()), -1)))

# %%
def _known_mean(
    errors: torch.Tensor,  # any shape
    known: torch.Tensor,  # bool, the same shape
) -> torch.Tensor:  # 0 where nothing is known
    "Mean of the `errors` where the truth is known."
    return torch.where(known, errors, 0).sum() / known.sum().clamp(min=1)


def _share_loss(
    logits: torch.Tensor,  # [..., C]
    shares: torch.Tensor,  # [..., C] that sum to one, NaN where unknown
) -> torch.Tensor:  # a number
    "Cross entropy against `shares`."
    known = ~shares[..., 0].isnan()
    return _known_mean(-(shares.nan_to_num() * logits.log_softmax(-1)).sum(-1), known)


def _distance_loss(
    values: torch.Tensor,  # [..., C]
    truth: torch.Tensor,  # [..., C], NaN where unknown
) -> torch.Tensor:  # a number
    "Mean absolute error."
    return _known_mean((values - truth.nan_to_num()).abs(), ~truth.isnan())

# %%
def _match_loss(
    descriptors: torch.Tensor,  # [B, 2, P, P, D] of first and second picture, of length one
    flow: torch.Tensor,  # [B, P, P, 2] shares of the picture
    visible: torch.Tensor,  # [B, P, P]
) -> tuple[torch.Tensor, torch.Tensor]:  # loss, share of visible patches that find their own
    "Each visible patch of the second picture must find the patch of the first that shows the same surface."
    b, _, p = descriptors.shape[:3]
    first, second = descriptors.flatten(2, 3).unbind(1)
    logits = _SHARPNESS * second @ first.transpose(1, 2)  # [B, P * P of the second, P * P of the first]
    x, y = (flow.nan_to_num() * p).long().clamp(0, p - 1).unbind(-1)
    index, known = (y * p + x).flatten(1), visible.flatten(1) > 0
    loss = F.cross_entropy(logits.transpose(1, 2), index, reduction="none")
    return _known_mean(loss, known), _known_mean((logits.argmax(-1) == index).float(), known)


def _picture_losses(
    parts: dict[str, torch.Tensor],  # of the head, [N, P, P, C]
    targets: dict[str, torch.Tensor],  # kind, colour, depth, box of each picture
) -> dict[str, torch.Tensor]:  # name -> number
    "What each patch shows, how far away it is, and the box of its object."
    return dict(kind=_share_loss(parts["kind"], targets["kind"]), colour=_share_loss(parts["colour"], targets["colour"]),
                depth=_distance_loss(parts["depth"][..., 0], targets["depth"]), box=_distance_loss(parts["box"], targets["box"]))


def _pair_losses(
    parts: dict[str, torch.Tensor],  # of the head, [B, P, P, C]
    targets: dict[str, torch.Tensor],  # flow, visible, other_box of each pair
) -> dict[str, torch.Tensor]:  # name -> number
    "Where each patch of the second picture lies in the first, whether it is visible there, and the box of its object there."
    return dict(flow=_distance_loss(parts["flow"], targets["flow"]),
                visible=F.binary_cross_entropy_with_logits(parts["visible"][..., 0], targets["visible"]),
                other_box=_distance_loss(parts["other_box"], targets["other_box"]))

# %%
def _point_loss(
    queries: torch.Tensor,  # [Q, D] of the pointing head
    descriptors: torch.Tensor,  # [Q, P * P, D] of the picture that each question is about
    shares: torch.Tensor,  # [Q, P * P] how the object in question covers its patches, sums to one
) -> tuple[torch.Tensor, torch.Tensor]:  # loss, share of the questions that point at their object
    "The end of a question must point at the object that it is about."
    logits = _SHARPNESS * torch.einsum("qd,qpd->qp", F.normalize(queries, dim=-1), descriptors)
    hit = shares.gather(1, logits.argmax(1, keepdim=True))[:, 0] > 0
    return -(shares * logits.log_softmax(-1)).sum(-1).mean(), hit.float().mean()


def _number_loss(
    logits: torch.Tensor,  # [n, N] of the tokens of 0, 1, ..., N - 1 where a coordinate is to be written
    truth: torch.Tensor,  # [n] the coordinates
) -> torch.Tensor:  # a number
    "The ranked probability score: a coordinate that is off by little costs little."
    below = logits.softmax(-1).cumsum(-1)
    return (below - (torch.arange(logits.shape[1], device=truth.device) >= truth[:, None]).float()).square().sum(-1).mean()

# %%
class DenseStudent(Qwen2_5_VLForConditionalGeneration):
    "A student with heads; `forward` gives the losses of one packed batch."
    def __init__(self, config: "Qwen2_5_VLConfig"):  # of the plain student
        super().__init__(config)
        self.heads = _DenseHeads(config.text_config.hidden_size, config.vision_config.spatial_merge_size)
        self.post_init()

    def read(
        self,
        batch: dict[str, torch.Tensor],  # input_ids [B, T], position_ids, attention_mask [B, 1, T, T], pixel_values, image_grid_thw
    ) -> tuple[torch.Tensor, torch.Tensor]:  # merged tokens [N, tokens, D] of all pictures, last hidden states [B, T, D]
        "One forward pass."
        merged = self.model.visual(batch["pixel_values"], grid_thw=batch["image_grid_thw"]).pooler_output
        embeds = self.model.get_input_embeddings()(batch["input_ids"])
        embeds = embeds.masked_scatter((batch["input_ids"] == self.config.image_token_id)[..., None], merged.to(embeds.dtype))
        bias = torch.zeros(batch["attention_mask"].shape, dtype=embeds.dtype, device=embeds.device)
        states = self.model.language_model(inputs_embeds=embeds, position_ids=batch["position_ids"], use_cache=False,
                                           attention_mask=bias.masked_fill(~batch["attention_mask"], -1e9))[0]
        return merged.reshape(len(batch["image_grid_thw"]), -1, merged.shape[-1]), states

    def _text_losses(
        self,
        states: torch.Tensor,  # [B * T, D]
        batch: dict[str, torch.Tensor],  # labels, label_at, numbers, number_ids
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:  # losses, figures to watch
        "What is written: cross entropy, and the distance of coordinates."
        logits = self.lm_head(states[batch["label_at"]]).float()
        losses = dict(text=F.cross_entropy(logits, batch["labels"]))
        watch = dict(tokens_right=(logits.argmax(-1) == batch["labels"]).float().mean())
        if (known := batch["numbers"] >= 0).any():
            scores = logits[known][:, batch["number_ids"]]
            losses["number"] = _number_loss(scores, batch["numbers"][known])
            watch["pixels_off"] = (scores.argmax(-1) - batch["numbers"][known]).abs().float().mean()
        return losses, watch

    def forward(
        self,
        **batch: torch.Tensor,  # of `pack`
    ) -> dict[str, torch.Tensor]:  # loss, its parts and figures to watch
        "The weighted sum of all losses."
        pictures, states = self.read(batch)
        parts = self.heads.read("pictures", pictures)
        parts = parts | dict(descriptor=F.normalize(parts["descriptor"], dim=-1), box=parts["box"].sigmoid())
        losses, watch, flat = _picture_losses(parts, batch), {}, states.flatten(0, 1)
        if "flow" in batch:
            second = states[:, batch["second_at"]]
            losses |= _pair_losses(self.heads.read("pair", second), batch)
            descriptors = parts["descriptor"].unflatten(0, (-1, 2))
            losses["match"], watch["matched"] = _match_loss(descriptors, batch["flow"], batch["visible"])
        if len(batch["labels"]):
            text, more = self._text_losses(flat, batch)
            losses, watch = losses | text, watch | more
        if len(batch["point_at"]):
            descriptors = parts["descriptor"].flatten(1, 2)[batch["point_picture"]]
            queries = self.heads.pointer(flat[batch["point_at"]]).float()
            losses["point"], watch["pointed"] = _point_loss(queries, descriptors, batch["point_shares"])
        idle = sum(p.sum() for p in self.heads.parameters()) * 0 + self.lm_head.weight[0, 0] * 0  # every process has every gradient
        loss = sum(LOSS_WEIGHTS[name] * part for name, part in losses.items()) + idle
        return dict(loss=loss) | {name: part.detach() for name, part in (losses | watch).items()}

    def plain(self) -> Qwen2_5_VLForConditionalGeneration:
        "The student without its heads."
        student = Qwen2_5_VLForConditionalGeneration(self.config)
        student.load_state_dict({name: part for name, part in self.state_dict().items() if not name.startswith("heads.")})
        student.generation_config = self.generation_config
        return student.eval()

# %%
def with_heads(
    student: Qwen2_5_VLForConditionalGeneration,  # a plain student
    seed: int = 0,  # of the heads' initial weights
) -> DenseStudent:
    "The same student with fresh heads."
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        dense = DenseStudent(student.config)
    dense.load_state_dict(student.state_dict(), strict=False)
    dense.generation_config = student.generation_config
    return dense

# %%
class DenseTrainer(Trainer):
    "Logs every part of the loss, and checks the heads on fixed batches."
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.sums, self.counts = Counter(), Counter()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        "The loss of one batch."
        outputs = model(**inputs)
        for name, part in outputs.items():
            if name != "loss": self.sums[name], self.counts[name] = self.sums[name] + part.detach(), self.counts[name] + 1
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def log(self, logs, *args, **kwargs):
        "Add the means since the last line."
        if "loss" in logs:
            logs = logs | {name: round(float(total / self.counts[name]), 4) for name, total in self.sums.items()}
            self.sums.clear(), self.counts.clear()
        super().log(logs, *args, **kwargs)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        "Every figure on each of the fixed batches."
        metrics = {}
        self.model.eval()
        for name, batch in (eval_dataset or self.eval_dataset).items():
            with torch.no_grad(), self.compute_loss_context_manager(): parts = self.model(**self._prepare_inputs(batch))
            metrics |= {f"{metric_key_prefix}_{name}_{part}": round(float(value), 4) for part, value in parts.items()}
        self.model.train()
        self.log(metrics)
        return metrics
