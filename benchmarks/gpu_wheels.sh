#!/bin/sh
# Gathers the packages that benchmarks/gpu.py needs besides PyTorch, as wheels for Linux on x86-64.
#
#   sh benchmarks/gpu_wheels.sh FOLDER [PYTHON] [PACKAGE…]
#
# PYTHON is the version on the machine with the GPU; without it, 3.12. Versions are those of constraints.txt, if they are
# there. numpy, pillow, pandas and pyarrow are large, and most PyTorch environments have them: they are only gathered if
# they are named. Prints the size of the wheels, and of the checkout without the embedded models, which no case uses.
set -eu
out=${1:?"give the folder for the wheels: sh benchmarks/gpu_wheels.sh FOLDER [PYTHON] [PACKAGE…]"}
shift
python=3.12
case ${1:-} in
  [0-9]*) python=$1 && shift ;;
esac
here=$(cd "$(dirname "$0")/.." && pwd)

# The name with its version in constraints.txt, if it is there.
pinned() {
  for name in "$@"; do
    grep -i "^$name==" "$here/constraints.txt" || echo "$name"
  done
}

platforms="--platform manylinux2014_x86_64"
for part in 2_17 2_24 2_27 2_28 2_31 2_34; do
  platforms="$platforms --platform manylinux_${part}_x86_64"
done

gather() {
  # shellcheck disable=SC2086  # several options
  python3 -m pip download -q --only-binary=:all: --python-version "$python" --implementation cp $platforms -d "$out" "$@"
}

# shellcheck disable=SC2046  # several names
gather --no-deps $(pinned transformers tokenizers safetensors huggingface_hub accelerate peft trl datasets msgspec pyyaml \
  jinja2 markupsafe psutil regex tqdm packaging filelock fsspec click xxhash sentencepiece "$@") \
  'dill<0.4.2' 'multiprocess<0.70.20'
# With what they need: exact versions.
gather $(pinned pydantic) httpx2
du -sh "$out"
if git -C "$here" rev-parse -q --verify HEAD >/dev/null 2>&1; then
  echo "$(git -C "$here" archive HEAD ':!src/spr/embedded/weights' | gzip | wc -c) bytes: the checkout, packed"
  echo "$(git -C "$here" archive HEAD | wc -c) bytes: the whole checkout, as it is"
fi
