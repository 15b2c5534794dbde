#!/bin/bash
# One machine with 8 GPUs: pairs, then training, each on all GPUs. The same command resumes.
#
#   CONFIG=mine.yaml RUN=runs/mine bash machine-8-gpus.sh
set -euo pipefail

CONFIG=${CONFIG:-mine.yaml}   # change: your config
RUN=${RUN:-runs/mine}         # change: where the results go; keep it when you resume
GPUS=${GPUS:-8}               # GPUs for training
WORKERS=${WORKERS:-32}        # CPU processes for objects, regions and pairs; about the number of cores

# `num_processes: auto`, the default, loads the describer once per GPU, and scorer with detector once per GPU.
spr run "$CONFIG" --out "$RUN" --workers "$WORKERS" \
    describer.num_processes=auto scorer.num_processes=auto detector.num_processes=auto

# Data type and precision come from the config's section `training`.
accelerate launch --multi_gpu --num_machines 1 --num_processes "$GPUS" --mixed_precision no --dynamo_backend no \
    -m spr train "$RUN"

spr report "$RUN"
