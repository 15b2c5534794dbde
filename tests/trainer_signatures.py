"""How RL trainers call rewards, read from their sources without importing them.

`python tests/trainer_signatures.py trl=FOLDER ms-swift=FOLDER … > tests/trainer_signatures.json`, where FOLDER is the
unpacked wheel, or a checkout of the repository for those that are not on PyPI.
"""

import ast
import json
import re
import sys
from pathlib import Path

# Trainer → the call's name → file, function that contains the call, and what is called.
CALLS = {
    "trl": {
        "GRPO": ("trl/trainer/grpo_trainer.py", "_calculate_rewards", "reward_func"),
        "RLOO": ("trl/trainer/rloo_trainer.py", "_calculate_rewards", "reward_func"),
        "Online DPO": (
            "trl/experimental/online_dpo/online_dpo_trainer.py",
            "_calculate_rewards_from_functions",
            "reward_func",
        ),
    },
    "ms-swift": {"GRPO": ("swift/rl_core/grpo_algorithm.py", "compute_rewards_per_func", "reward_func")},
    "verl": {
        "naive": ("verl/experimental/reward_loop/reward_manager/naive.py", "run_single", "self.compute_score"),
        "batch": ("verl/workers/reward_manager/batch.py", "verify", "self.compute_score"),
    },
    "easyr1": {
        "batch": ("verl/workers/reward/function.py", "compute_reward_batch", "self.reward_fn"),
        "sequential": ("verl/workers/reward/function.py", "compute_reward_sequential", "self.reward_fn"),
    },
    "vlm-r1": {
        "GRPO": (
            "src/open-r1-multimodal/src/open_r1/trainer/grpo_trainer.py",
            "_generate_and_score_completions",
            "reward_func",
        )
    },
    "visual-rft": {"GRPO": ("src/virft/src/open_r1/trainer/grpo_trainer.py", "compute_loss", "reward_func")},
}
# Scripts of which a user's file takes names.
SCRIPTS = {
    "vlm-r1": "src/open-r1-multimodal/src/open_r1/grpo_jsonl.py",
    "visual-rft": "src/virft/src/open_r1/grpo.py",
}
VERSIONS = {
    "trl": ("trl-*.dist-info/METADATA", r"\nVersion: (.+)"),
    "ms-swift": ("ms_swift-*.dist-info/METADATA", r"\nVersion: (.+)"),
    "verl": ("verl-*.dist-info/METADATA", r"\nVersion: (.+)"),
    "easyr1": ("verl/__init__.py", r'__version__ = "(.+)"'),
}


def signature(call):
    """Number of positional arguments, names of keyword arguments, and whether a dict of more is passed."""
    names = [item.arg for item in call.keywords if item.arg is not None]
    return {"positional": len(call.args), "keywords": names, "more": len(names) < len(call.keywords)}


def keys_in(function):
    """All texts that the function uses as keys."""
    found = set()
    for node in ast.walk(function):
        keys = [node.slice] if isinstance(node, ast.Subscript) else node.keys if isinstance(node, ast.Dict) else []
        found |= {key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str)}
    return sorted(found)


def names_of(tree):
    """The names that a module defines or imports."""
    found = set()
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(item.asname or item.name).partition(".")[0] for item in node.names}
        elif isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return sorted(found - {"*"})


def read(trainer, folder):
    found = {}
    if trainer in VERSIONS:
        path, pattern = VERSIONS[trainer]
        found["version"] = re.search(pattern, next(folder.glob(path)).read_text(encoding="utf-8"))[1]
    for name, (path, inside, called) in CALLS[trainer].items():
        tree = ast.parse((folder / path).read_text(encoding="utf-8"))
        function = next(
            n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef) and n.name == inside
        )
        calls = [n for n in ast.walk(function) if isinstance(n, ast.Call) and ast.unparse(n.func) == called]
        # A reward model is called with tensors in `reward_inputs` alone.
        shapes = [signature(n) for n in calls if ast.unparse(n) != f"{called}(**reward_inputs)"]
        assert shapes, f"{path}: no call of {called} in {inside}"
        assert all(shape == shapes[0] for shape in shapes), shapes
        found[name] = {**shapes[0], "keys": keys_in(function)}
    if trainer in SCRIPTS:
        found["names"] = names_of(ast.parse((folder / SCRIPTS[trainer]).read_text(encoding="utf-8")))
    return found


if __name__ == "__main__":
    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    lines = []
    for trainer in CALLS:
        content = {key: json.dumps(value) for key, value in read(trainer, Path(given[trainer])).items()}
        lines.append(f'"{trainer}": {{\n' + ",\n".join(f'  "{key}": {value}' for key, value in content.items()) + "\n}")
    print("{\n" + ",\n".join(lines) + "\n}")
