"""In the last layer only what predicts an answer's token is read; the prompt's tokens need just their keys and values.

The prompt is most of a sequence, so nearly all of the last layer's work falls away: queries, attention, output
projection and MLP of the rows before the answers, forward and backward.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from spr.models.families import Family

MARK = "spr_last_layer"
"""The attribute of the last attention module by which `spr.training.attention.attend` knows it."""


class LastLayer:
    """Leaves rows out of the last layer of a language model: their outputs are zero. The newest of a model counts.

    Args:
        model: The model of transformers, its adapter in place.
        family: What is known of its family.

    Attributes:
        begin: The first row that is computed; 0 for all. It stays until the backward pass is over, for checkpointed
            activations are computed again there.
    """

    def __init__(self, model: Any, family: Family) -> None:
        self.begin = 0
        self._hooks: list[RemovableHandle] = []
        self._attention: Any = None
        layers: Any = model.get_submodule(f"{family.language_model.removesuffix('.layers')}.layers")
        attention, mlp = layers[-1].self_attn, layers[-1].mlp
        # Layers of another build (CogVLM's, with two experts) compute all rows.
        parts = [getattr(attention, name, None) for name in ("q_proj", "o_proj")]
        if not all(isinstance(part, nn.Module) for part in parts):
            return
        earlier = getattr(attention, MARK, None)
        if earlier is not None:  # of the same model before it had its adapter, say
            earlier.remove()
        self._attention = attention
        setattr(attention, MARK, self)
        for part in (*parts, mlp):
            self._hooks += [part.register_forward_pre_hook(self._cut), part.register_forward_hook(self._fill)]

    def remove(self) -> None:
        """Leave nothing out any more."""
        self.begin = 0
        for hook in self._hooks:
            hook.remove()
        if getattr(self._attention, MARK, None) is self:
            delattr(self._attention, MARK)

    def _cut(self, module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        del module
        return (given[0][:, self.begin :], *given[1:])

    def _fill(self, module: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> Tensor:
        del module, given
        return nn.functional.pad(made, (0, 0, self.begin, 0)) if self.begin else made
