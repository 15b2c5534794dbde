"""Whether the models of a config can be loaded: checked before any of them is, with one error for all that can't."""

from __future__ import annotations

from collections.abc import Iterable

from huggingface_hub import constants

from spr.config import DescriberConfig, DetectorConfig, ScorerConfig
from spr.core.errors import SprError
from spr.core.paths import is_dir
from spr.core.terminal import count_text
from spr.models.custom_models import check_multimodal, class_name, load_config
from spr.models.families import choose_dialect
from spr.models.hub_cache import command_for
from spr.models.loading import (
    ModelError,
    UnreachableError,
    check_adapter,
    check_folder,
    model_source,
    unreachable,
)
from spr.models.weight_files import cached, weights_are_cached

Section = DescriberConfig | ScorerConfig | DetectorConfig


def check_models(sections: Iterable[Section]) -> None:
    """Raise one error for all models and adapters of these sections that can't be loaded, before any of them is.

    Each has a backend that loads its ``model``. Only configs are read, from the Hub unless the model is in its cache.

    Raises:
        ModelError: naming all models that are missing, and how to get them.
        ConfigError: for an unknown embedded model.
    """
    missing: dict[str, SprError] = {}
    problems: list[SprError] = []
    for section in sections:
        if section.model is None or section.model in missing:
            continue
        adapter = section.peft_adapter if isinstance(section, DescriberConfig) else None
        source = model_source(section.model)
        try:
            check_folder(source)
            complete = not is_dir(source) and _is_cached(source, section.revision)
            if not is_dir(source) and not complete and (missing or constants.HF_HUB_OFFLINE):
                raise unreachable(source)
            if not complete or adapter is not None:
                config = load_config(source, revision=section.revision)
                if isinstance(section, DescriberConfig):
                    check_multimodal(source, config.model_type)
                    choose_dialect(section.dialect, config.model_type, None)
                if adapter is not None:
                    check_adapter(adapter, class_name(config.model_type))
        except UnreachableError as error:
            missing[section.model] = error
        except SprError as error:
            problems.append(error)
    if len(missing) + len(problems) == 1:
        raise [*missing.values(), *problems][0]
    if missing:
        what = f"The Hub is unreachable, and {count_text(len(missing), 'models')} can't be found here"
        others = [f"{error.what}: {error.got}" for error in problems]
        fix = f"connect to the network, download them first ({' && '.join(map(command_for, missing))})"
        raise ModelError(what, got="\n".join([", ".join(missing), *others]), fix=f"{fix}, or give folders")
    if problems:
        got = "\n".join(f"{error.what}: {error.got}" for error in problems)
        fix = "; ".join(dict.fromkeys(error.fix for error in problems if error.fix))
        raise ModelError(f"{count_text(len(problems), 'models')} can't be loaded", got=got, fix=fix)


def _is_cached(model: str, revision: str | None) -> bool:
    """Whether the config and all weights of a Hub model are in the cache."""
    return cached(model, "config.json", revision) is not None and weights_are_cached(model, revision)
