"""The signatures of vLLM that SPR relies on, read from its source without importing it.

`python tests/vllm_signatures.py FOLDER > tests/vllm_signatures.json`, where FOLDER is the unpacked wheel.
"""

import ast
import json
import re
import sys
from pathlib import Path

CALLS = {
    "LLM": ("entrypoints/llm.py", "LLM", "__init__"),
    "LLM.generate": ("entrypoints/llm.py", "LLM", "generate"),
    "LLMEngine.add_lora": ("v1/engine/llm_engine.py", "LLMEngine", "add_lora"),
    "EngineCoreClient.shutdown": ("v1/engine/core_client.py", "MPClient", "shutdown"),
    "RequestOutput": ("outputs.py", "RequestOutput", "__init__"),
}
FIELDS = {
    "EngineArgs": ("engine/arg_utils.py", "EngineArgs"),
    "SamplingParams": ("sampling_params.py", "SamplingParams"),
    "LoRARequest": ("lora/request.py", "LoRARequest"),
    "CompletionOutput": ("outputs.py", "CompletionOutput"),
    "TextPrompt": ("inputs/llm.py", "_PromptOptions"),
    "TokensPrompt": ("inputs/llm.py", "TokensPrompt"),
}


def find_class(file, name):
    return next(n for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.ClassDef) and n.name == name)


def parameters(function):
    """Positional and keyword-only parameters without ``self``, and whether more keywords are passed on."""
    given = function.args
    positional = [item.arg for item in (*given.posonlyargs, *given.args)][1:]
    return {"positional": positional, "keywords": [item.arg for item in given.kwonlyargs], "more": bool(given.kwarg)}


def read(folder):
    package = folder / "vllm"
    found = {"version": re.search(r"'(\d[^']*)'", (package / "_version.py").read_text().split("version =")[-1])[1]}
    for key, (path, name, method) in CALLS.items():
        body = find_class(package / path, name).body
        found[key] = parameters([n for n in body if isinstance(n, ast.FunctionDef) and n.name == method][-1])
    for key, (path, name) in FIELDS.items():
        body = find_class(package / path, name).body
        found[key] = [n.target.id for n in body if isinstance(n, ast.AnnAssign) and not n.target.id.startswith("_")]
    found["TokensPrompt"] += found.pop("TextPrompt")
    ranks = re.search(r"MaxLoRARanks = Literal\[([\d, ]+)\]", (package / "config" / "lora.py").read_text())[1]
    found["MaxLoRARanks"] = [int(rank) for rank in ranks.split(",")]
    return found


if __name__ == "__main__":
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in read(Path(sys.argv[1])).items()]
    print("{\n" + ",\n".join(lines) + "\n}")
