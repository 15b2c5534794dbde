"""The adapter that a training starts from and continues (`training.init_adapter`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from peft import set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file

from spr.config import LoraSection
from spr.core.atomic import sha256
from spr.core.documents import read_json
from spr.core.errors import ConfigError, InputError, RunError
from spr.core.paths import exists, is_file
from spr.models.errors import ModelError
from spr.models.loading import check_adapter, clear_errors
from spr.runs.adapters import find_adapter

_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_FIELD = "training.init_adapter"
# What would make it another function of the same tensors, or train more than the matrices, with the value that fits.
_PLAIN: Mapping[str, Any] = {
    "use_rslora": False,
    "use_dora": False,
    "use_qalora": False,
    "fan_in_fan_out": False,
    "lora_bias": False,
    "bias": "none",
    "rank_pattern": {},
    "alpha_pattern": {},
    "modules_to_save": None,
    "target_parameters": None,
    "trainable_token_indices": None,
    "layer_replication": None,
    "alora_invocation_tokens": None,
}
_SHOWN = 3  # tensors named in an error


@dataclass(frozen=True, slots=True)
class InitAdapter:
    """An adapter in PEFT's format that fits `training.lora`; ``digest`` is the SHA-256 of its weights."""

    folder: Path
    digest: str
    settings: LoraSection

    @classmethod
    def open(cls, path: Path, settings: LoraSection) -> Self:
        """Check an adapter's config, without its model.

        Args:
            path: The adapter's folder, or a run with one.
            settings: The config section `training.lora`.

        Raises:
            RunError: if the path is a run without an adapter, or with several (`find_adapter`).
            ModelError: if the adapter is damaged or incomplete.
            ConfigError: if the path is no adapter, its rank or alpha is another one than the section's, or it is not
                a plain LoRA adapter.
        """
        if not exists(path):
            raise ConfigError(f"The adapter of `{_FIELD}` does not exist", got=path, fix="check the path")
        if not is_file(path / "adapter_config.json") and is_file(path / "config.json"):
            fix = f"set describer.model={path}, and remove {_FIELD}: its weights contain the adapter"
            raise ConfigError(f"`{_FIELD}` is a model, not an adapter", got=path, fix=fix)
        try:
            folder = find_adapter(path)
        except InputError:
            expected = "a folder with adapter_config.json and adapter_model.safetensors, or a run with one"
            raise ConfigError(f"`{_FIELD}` is not an adapter", got=path, expected=expected) from None
        except RunError as error:
            error.add_note(f"  `{_FIELD}` names it.")
            raise
        check_adapter(folder)
        with clear_errors(folder):
            own = dict(read_json(folder / "adapter_config.json"))
        if (kind := own.get("peft_type")) != "LORA":
            fix = f"give a LoRA adapter, or remove {_FIELD}"
            raise ConfigError(f"The adapter {folder} is of another kind", got=kind, expected="LORA", fix=fix)
        other = {name: own[name] for name, plain in _PLAIN.items() if own.get(name) and own[name] != plain}
        if other:
            got = ", ".join(f"{name}: {value}" for name, value in other.items())
            fix = "merge it (spr merge), set describer.model to the merged folder, and start a new adapter there"
            raise ConfigError(f"The adapter {folder} is not a plain LoRA adapter", got=got, expected="none", fix=fix)
        changed = {name: own.get(name) for name in ("r", "lora_alpha") if own.get(name) != getattr(settings, name)}
        if changed:
            now = ", ".join(f"{name}: {getattr(settings, name):g}" for name in changed)
            there = ", ".join(f"{name}: {_number(value)}" for name, value in changed.items())
            fix = " ".join(f"training.lora.{name}={_number(value)}" for name, value in changed.items())
            what = f"`training.lora` differs from the adapter {folder}, which `{_FIELD}` names"
            raise ConfigError(what, got=now, expected=there, fix=f"set {fix}, or remove {_FIELD}")
        return cls(folder, sha256(folder / _WEIGHTS), settings)

    @property
    def name(self) -> str:
        """The adapter in fingerprints: the same name means the same weights, wherever they are."""
        return f"lora@{self.digest[:12]}"

    def check_layers(self, layers: Mapping[str, tuple[int, int]]) -> None:
        """Check that the adapter has exactly the tensors of these layers.

        Args:
            layers: The layers that get adapters, by their names in the model, with their input and output sizes.

        Raises:
            ConfigError: if it is of other layers than `training.lora.target_modules`.
            ModelError: if it was trained on another model.
        """
        with clear_errors(self.folder), safe_open(self.folder / _WEIGHTS, framework="pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        rank, expected = self.settings.r, {}
        for layer, (inputs, outputs) in layers.items():
            expected[f"{_PREFIX}{layer}.lora_A.weight"] = (rank, inputs)
            expected[f"{_PREFIX}{layer}.lora_B.weight"] = (outputs, rank)
        if found == expected:
            return
        there, here = ({_target(name) for name in names} for names in (found, expected))
        if there != here:
            known = there - {""}
            fix = f"set training.lora.target_modules=[{', '.join(sorted(known))}], or remove {_FIELD}"
            what = f"`training.lora.target_modules` differs from the adapter {self.folder}, which `{_FIELD}` names"
            raise ConfigError(what, got=", ".join(sorted(here)), expected=", ".join(sorted(known)), fix=fix)
        wrong = [f"missing: {name}" for name in expected if name not in found]
        wrong += [f"unexpected: {name}" for name in found if name not in expected]
        wrong += [
            f"{name} {found[name]} for {shape}" for name, shape in expected.items() if found.get(name, shape) != shape
        ]
        more = f", and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        fix = f"train the model that it was trained on (base_model_name_or_path), or remove {_FIELD}"
        what = f"The adapter {self.folder} was not trained on this model"
        expects = "exactly the tensors of the adapted layers"
        raise ModelError(what, got=", ".join(wrong[:_SHOWN]) + more, expected=expects, fix=fix)

    def load_into(self, model: Any) -> None:
        """Put the weights into the new adapter of a `peft.PeftModel`, in that adapter's data type.

        Raises:
            ModelError: if the file has changed since it was opened.
        """
        if sha256(self.folder / _WEIGHTS) != self.digest:
            fix = "run the same command again, without changing the adapter meanwhile"
            raise ModelError(f"The adapter {self.folder} has changed meanwhile", fix=fix)
        with clear_errors(self.folder):
            set_peft_model_state_dict(model, load_file(self.folder / _WEIGHTS))


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _target(tensor: str) -> str:
    """The last name of a tensor's layer, such as ``q_proj``; empty if it is not a LoRA matrix."""
    layer, found, _ = tensor.rpartition(".lora_")
    return layer.rpartition(".")[2] if found else ""
