"""Train the describer on conversations about views of scenes; its vision tower comes from `train_vision`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F  # noqa: N812 - the name that all torch code uses
from transformers import AttentionInterface, LlavaOnevisionForConditionalGeneration
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

from spr.embedded.sprites import COLOURS, SHAPES
from tools.embedded.conversations import IGNORED, Conversations, conversation_maker
from tools.embedded.corpus import Corpus
from tools.embedded.dense import Objects, owners, soft_coordinates
from tools.embedded.loop import Run, Task, checkpoint_path, load_modules, seed_everything, train
from tools.embedded.models import IMAGE_TOKENS, make_describer
from tools.embedded.train_vision import SOFTNESS, Seeing, tower_features
from tools.embedded.views import ImageBank
from tools.embedded.vocabulary import COORDINATES, FIRST_COORDINATE, IDS, USER

BOX_JITTER = 0.04
"""Noise of the boxes in the answers, see `tools.embedded.conversations.jittered`. Real models learn from boxes of mixed
quality; exact boxes would leave preference training little to improve."""
_POINTING_LAYER, _POINTERS, _POINTING_WEIGHT = 2, 2, 0.3
_BLOCKED = -1e4
_PRECISION = torch.bfloat16  # dtype of the language model's products: twice as fast on CPUs that support it


def _attention(
    _module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attention in float32: torch's bfloat16 backward pass is much slower on CPUs."""
    output = F.scaled_dot_product_attention(
        query.float(), key.float(), value.float(), attn_mask=mask, scale=options.get("scaling")
    )
    return output.transpose(1, 2).to(query.dtype), None


AttentionInterface.register("float32_sdpa", _attention)


def train_describer(run: Run, corpus: Corpus) -> LlavaOnevisionForConditionalGeneration:
    """Train the describer to answer, starting from the tower in ``vision.pt``; writes ``describer.pt``."""
    seed_everything(run.seed, run.device)
    model = make_describer()
    model.model.language_model.config._attn_implementation = "float32_sdpa"
    seeing = Seeing(model)  # shares the model's modules
    load_modules(checkpoint_path(run.out, "vision"), seeing=seeing)
    seeing.to(run.device)
    model.to(run.device)
    bank = ImageBank(corpus.images, run.device)

    def loss(batch: Conversations, _progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():  # trained further, the tower would place boxes too well to leave room for improvement
            features = tower_features(seeing.tower, bank.views(batch.views.rows, batch.views.windows))
        states, pointing = answer_states(model, seeing.projector(features), batch, _PRECISION)
        answers, figures = answer_loss(model, states, torch.from_numpy(batch.labels).to(run.device))
        pointed, pointed_right = pointing_loss(pointing, batch, batch.views.objects(run.device))
        return answers + _POINTING_WEIGHT * pointed, figures | {"pointed": pointed_right}

    make = conversation_maker(corpus, run.seed + 1, run.batch_size, run.steps, BOX_JITTER)
    train(Task("describer", {"model": model}, make, loss), run)
    return model


def answer_states(
    model: LlavaOnevisionForConditionalGeneration, image: Tensor, batch: Conversations, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The language model's states that predict each token of the turns, and the attention to the patches.

    Equals the model's own forward pass on each turn separately, but runs once for the turns that share a view.

    Args:
        model: The describer.
        image: The projected patches ``(B, P, width)``.
        batch: The turns.
        dtype: The dtype of the language model's computation; its parameters keep theirs.

    Returns:
        States ``(B, T, width)``, and the log-attention to the patches that the first `_POINTERS` heads of layer
        `_POINTING_LAYER` have while they predict each token, ``(B, heads, T, P)``.
    """
    device, embed = image.device, model.get_input_embeddings()
    newline = model.model.image_newline[None, None].expand(len(image), 1, -1)
    start = embed(torch.full((len(image), 1), IDS[USER], device=device))
    inputs = torch.cat([start, image, newline, embed(torch.from_numpy(batch.ids).to(device))], dim=1)
    prefix = 1 + IMAGE_TOKENS
    mask, positions = shared_prefix_mask(
        torch.from_numpy(batch.turns).to(device), torch.from_numpy(batch.positions).to(device), prefix
    )
    text = model.model.language_model
    parameters = {name: parameter.to(dtype) for name, parameter in text.named_parameters()}
    arguments = {"inputs_embeds": inputs.to(dtype), "attention_mask": mask, "position_ids": positions}
    made = functional_call(text, parameters, kwargs={**arguments, "use_cache": False, "output_hidden_states": True})
    # A turn's first token is never predicted, so the prediction of the prefix's last state does not matter.
    predicting = slice(prefix - 1, -1)
    layer = text.layers[_POINTING_LAYER]
    entering = layer.input_layernorm(made.hidden_states[_POINTING_LAYER].float())
    heads = (*entering.shape[:2], -1, layer.self_attn.head_dim)
    query, key = (
        projection(entering).view(heads).transpose(1, 2)
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj)
    )
    query, key = apply_rotary_pos_emb(query, key, *text.rotary_emb(entering, positions))
    query, key = query[:, :_POINTERS, predicting], key[:, :_POINTERS]
    attention = query @ key.mT * layer.self_attn.scaling + mask[:, :, predicting]
    return made.last_hidden_state.float()[:, predicting], F.log_softmax(attention, dim=-1)[..., 1 : 1 + image.shape[1]]


def pointing_loss(pointing: Tensor, batch: Conversations, objects: Objects) -> tuple[Tensor, Tensor]:
    """Negative log-attention to the patches of the object that a token is about, and how often these get the most.

    The language model is slowest to learn which patch a name belongs to: in a trial without this loss, the words of a
    question had no influence on the box after 1,500 steps. Two heads are supervised; the others are free.

    Args:
        pointing: Log-attention to the patches, ``(B, heads, T, P)``.
        batch: The turns, with the object that each token is about.
        objects: The objects in the views.
    """
    about = torch.from_numpy(batch.about).to(pointing.device)
    owner = owners(objects, round(pointing.shape[-1] ** 0.5))
    shown = (owner[:, None, :] == about[:, :, None]) & (about >= 0)[:, :, None]
    view, token = shown.any(dim=-1).nonzero(as_tuple=True)
    said, right = pointing[view, :, token], shown[view, token][:, None]
    paid = said.masked_fill(~right, -torch.inf).logsumexp(dim=-1)
    hit = right.expand_as(said).gather(-1, said.argmax(dim=-1, keepdim=True)).float().mean()
    return -paid.mean(), hit


def shared_prefix_mask(turns: Tensor, positions: Tensor, prefix: int) -> tuple[Tensor, Tensor]:
    """The additive attention mask ``(B, 1, L, L)`` and positions ``(B, L)`` of turns ``(B, T)`` after a prefix.

    A token attends to earlier tokens of the prefix and of its own turn; L = prefix + T.
    """
    batch, device = len(turns), turns.device
    every = torch.cat([torch.zeros(batch, prefix, dtype=torch.long, device=device), turns], dim=1)
    before = torch.ones(every.shape[1], every.shape[1], dtype=torch.bool, device=device).tril()
    # Padding has turn 0 like the prefix. It comes last, so no other token attends to it.
    seen = before & ((every[:, None, :] == 0) | (every[:, None, :] == every[:, :, None]))
    mask = torch.zeros(seen.shape, device=device).masked_fill_(~seen, _BLOCKED)[:, None]
    ahead = torch.arange(prefix, device=device).expand(batch, -1)
    return mask, torch.cat([ahead, positions + prefix], dim=1)


def answer_loss(
    model: LlavaOnevisionForConditionalGeneration, states: Tensor, labels: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy of the answers' tokens; the target of a coordinate is spread over its neighbours.

    Args:
        model: The describer; its ``lm_head`` is used.
        states: ``(B, T, width)``.
        labels: int64 ``(B, T)``, `IGNORED` where there is no target.
    """
    asked = labels != IGNORED
    target = labels[asked]
    logps = F.log_softmax(model.lm_head(states[asked]), dim=-1)
    place = target - FIRST_COORDINATE
    is_coordinate = (place >= 0) & (place < len(COORDINATES))
    targets = F.one_hot(target, logps.shape[-1]).to(logps.dtype)
    targets[is_coordinate] = 0
    soft = soft_coordinates(place[is_coordinate].float(), SOFTNESS)
    targets[is_coordinate, FIRST_COORDINATE : FIRST_COORDINATE + len(COORDINATES)] = soft
    loss = -(targets * logps).sum(dim=-1).mean()
    with torch.no_grad():
        said = logps.argmax(dim=-1)
        error = ((said - target).abs().clamp(max=100) * is_coordinate).sum() / is_coordinate.sum().clamp(min=1)
        names = (target >= IDS[COLOURS[0]]) & (target <= IDS[SHAPES[-1]])
        right = ((said == target) & names).sum() / names.sum().clamp(min=1)
    return loss, {"coordinate_error": error / 100, "names_right": right}
