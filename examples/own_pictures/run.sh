#!/usr/bin/env bash
# Pictures to a trained run: run.sh PICTURES OUT [--set KEY=VALUE …, settings of the training]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
pictures=$1 out=$2
shift 2

# 1. Pictures become rows; labels become column groups beside them. Whatever is fresh is kept.
onediffusion ingest "$pictures" "$out/dataset"
onediffusion label "$out/dataset" caption edges latents-96 latents-96-edges text --set "text.tasks=[text2image, edges]"
onediffusion status "$out/dataset"

# 2. The run. The dataset's address is the one thing that the configuration cannot know.
onediffusion train "$here/tiny.yaml" --run "$out/run" --set "mixture.pictures.dataset=$out/dataset" "$@"

# 3. One task in both directions, and a page about all of it.
first=$(find "$pictures" -type f | sort | head -1)
onediffusion sample "$out/run" edges --image "$first" --out "$out/edges.png" --steps 10
onediffusion sample "$out/run" edges --condition "$out/edges.png" --prompt "a photograph" --out "$out/drawn.png" --steps 10
onediffusion report "$out/run"
