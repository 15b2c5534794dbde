"""The states of linear attention in buffers, in which rows come and go like those of `spr.models.describers.cache`."""

from __future__ import annotations

from torch import Tensor
from transformers.cache_utils import LinearAttentionLayer

_STATE = (
    "conv_kernel_size",
    "has_previous_state",
    "is_conv_states_initialized",
    "is_recurrent_states_initialized",
)


def resized(buffer: Tensor, used: int, rows: int) -> Tensor:
    """A buffer with so many rows, of which the first ``used`` are kept."""
    if len(buffer) == rows:
        return buffer
    other = buffer.new_zeros(rows, *buffer.shape[1:])
    other[:used] = buffer[:used]
    return other


class BufferedState(LinearAttentionLayer):  # type: ignore[misc]
    """The states of one layer with linear attention, which have no columns, in buffers with free rows."""

    def __init__(self, number_of_states: int) -> None:
        super().__init__(number_of_states=number_of_states)
        self.rows = 0
        self.buffers: dict[tuple[str, int], Tensor] = {}

    def put(self, rows: slice, sources: Tensor, layer: LinearAttentionLayer, size: tuple[int, int]) -> None:
        """Copy rows ``sources`` of a prompt's layer to ``rows``, in buffers of ``size`` rows and columns."""
        self.resize(size[0])
        self.dtype, self.device = layer.dtype, layer.device
        for name in _STATE:
            setattr(self, name, dict(getattr(layer, name)))
        for name in ("conv_states", "recurrent_states"):
            for k, state in getattr(layer, name).items():
                if state is None:
                    continue
                if (name, k) not in self.buffers:
                    self.buffers[name, k] = state.new_zeros(size[0], *state.shape[1:])
                self.buffers[name, k][rows] = state.index_select(0, sources.to(state.device))

    def resize(self, rows: int) -> None:
        """Give the buffers so many rows; the states of those in use are kept."""
        for key, buffer in self.buffers.items():
            self.buffers[key] = resized(buffer, self.rows, rows)
        self.use_rows(self.rows)

    def use_rows(self, rows: int) -> None:
        """Show the first rows to the model."""
        self.rows = rows
        for (name, k), buffer in self.buffers.items():
            getattr(self, name)[k] = buffer[:rows]

    def move_rows(self, targets: Tensor, sources: Tensor) -> None:
        """Copy whole rows; no target is a source."""
        for buffer in self.buffers.values():
            buffer[targets.to(buffer.device)] = buffer[sources.to(buffer.device)]
