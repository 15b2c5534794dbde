#!/bin/sh
# Gathers the packages that benchmarks/gpu.py needs besides a usual PyTorch environment (torch, accelerate, safetensors,
# tokenizers, huggingface_hub, pyarrow, pandas, scipy, typer, …), as wheels for Python 3.12 on Linux, x86-64.
# Versions are those of constraints.txt, if they are there.
#
#   sh benchmarks/gpu_wheels.sh FOLDER
set -eu
out=${1:?"give the folder for the wheels: sh benchmarks/gpu_wheels.sh FOLDER"}
here=$(cd "$(dirname "$0")/.." && pwd)
set --
for name in transformers peft trl datasets pydantic msgspec; do
  set -- "$@" "$(grep "^$name==" "$here/constraints.txt")"
done
# What these need: the ranges are from their own metadata.
set -- "$@" pydantic-core==2.50.4 typing-inspection annotated-types 'dill<0.4.2' 'multiprocess<0.70.20'
for part in 2_17 2_28 2_27 2_34; do
  platforms="${platforms:-} --platform manylinux_${part}_x86_64"
done
# shellcheck disable=SC2086  # several options
python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp $platforms \
  --platform manylinux2014_x86_64 -d "$out" "$@"
du -sh "$out"
