"""Training at a very small size is deterministic, also when it is interrupted and resumed."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from spr.core.errors import InputError
from tools.embedded.corpus import build_corpus
from tools.embedded.loop import Run
from tools.embedded.train import Phase, main, train_phases

COMMON = ["--scenes", "24", "--batch-size", "4", "--seed", "3", "--log-every", "1"]


@pytest.fixture(autouse=True)
def _torch_left_as_it_was():
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus and a vision tower trained for four steps."""
    out = tmp_path_factory.mktemp("trained")
    main(["vision", "--out", str(out), "--steps", "4", *COMMON])
    return out


def arguments(trained: Path, model: str, out: Path, *more: str) -> list[str]:
    out.mkdir(exist_ok=True)
    if not (out / "vision.pt").exists() and model != "vision":
        (out / "vision.pt").write_bytes((trained / "vision.pt").read_bytes())
    return [model, "--out", str(out), "--corpus", str(trained / "corpus"), "--steps", "4", *COMMON, *more]


def curve(out: Path, model: str) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / f"{model}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("model", ["vision", "describer", "scorer", "detector"])
def test_the_same_seed_gives_the_same_loss_curve_twice(trained: Path, tmp_path: Path, model: str) -> None:
    for out in (tmp_path / "one", tmp_path / "two"):
        main(arguments(trained, model, out))
    one = curve(tmp_path / "one", model)
    assert [row["step"] for row in one] == [1, 2, 3, 4]
    assert len({row["loss"] for row in one}) == 4
    assert curve(tmp_path / "two", model) == one


@pytest.mark.parametrize("model", ["describer", "detector"])
def test_a_resumed_run_equals_an_uninterrupted_one(trained: Path, tmp_path: Path, model: str) -> None:
    main(arguments(trained, model, tmp_path / "whole"))
    main(arguments(trained, model, tmp_path / "parts", "--stop-at", "2"))
    assert len(curve(tmp_path / "parts", model)) == 2
    main(arguments(trained, model, tmp_path / "parts", "--resume"))
    assert curve(tmp_path / "parts", model) == curve(tmp_path / "whole", model)


def test_another_seed_gives_another_loss_curve(trained: Path, tmp_path: Path) -> None:
    main(["vision", "--out", str(tmp_path), "--scenes", "24", "--batch-size", "4", "--steps", "1", "--seed", "4"])
    assert curve(tmp_path, "vision")[0]["loss"] != curve(trained, "vision")[0]["loss"]


def test_resuming_without_a_checkpoint_or_with_another_run_is_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no checkpoint"):
        main(arguments(trained, "vision", tmp_path, "--resume"))
    main(arguments(trained, "vision", tmp_path, "--stop-at", "1"))
    with pytest.raises(InputError, match="another run"):
        main([*arguments(trained, "vision", tmp_path, "--resume"), "--steps", "5"])


def test_a_model_that_needs_the_vision_tower_asks_for_it(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"vision\.pt"):
        main(["scorer", "--out", str(tmp_path), "--corpus", str(trained / "corpus"), "--steps", "1", *COMMON])


def test_a_corpus_made_from_other_scenes_is_refused(trained: Path, tmp_path: Path) -> None:
    asked = ["vision", "--out", str(tmp_path), "--corpus", str(trained / "corpus"), "--steps", "1", "--seed", "4"]
    with pytest.raises(InputError, match="another corpus"):
        main([*asked, "--scenes", "24"])


def test_a_run_can_start_from_the_weights_of_another(trained: Path, tmp_path: Path) -> None:
    main(arguments(trained, "vision", tmp_path, "--start-from", str(trained / "vision.pt")))
    # After four steps of training, it is better than the other run at its first step on the same scenes.
    assert curve(tmp_path, "vision")[0]["loss"] < curve(trained, "vision")[0]["loss"]


def test_the_second_phase_starts_from_the_first_ones_weights_and_can_be_resumed(trained: Path, tmp_path: Path) -> None:
    corpus = build_corpus(trained / "corpus", n=24, seed=3)
    run = Run(tmp_path, seed=3, steps=0, batch_size=0, device=torch.device("cpu"), log_every=1)
    train_phases("vision", run, corpus, (Phase(6, 4, stop_at=3), Phase(2, 4)))
    first, second = curve(tmp_path, "vision-1"), curve(tmp_path, "vision")
    assert [row["step"] for row in first] == [1, 2, 3]
    assert [row["step"] for row in second] == [1, 2]
    assert second[0]["loss"] < first[0]["loss"]
    (tmp_path / "vision.pt").unlink()
    train_phases("vision", dataclasses.replace(run, resume=True), corpus, (Phase(6, 4, stop_at=3), Phase(2, 4)))
    assert curve(tmp_path, "vision") == second
