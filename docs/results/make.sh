#!/bin/sh
# Measures what docs/results.md shows, and puts it there:
#
#     sh docs/results/make.sh kodak.tar px64.tar reports [OPTIONS OF evaluate.py]
#
# Begun again, it does only what is missing; a new model is measured, other codecs are not again.
# Speeds come from tests/benchmarks/throughput.py --markdown docs/results.md.
set -e
kodak=$1 px64=$2 reports=$3
shift 3
evaluate() {
    "${PYTHON:-python}" jobs/evaluate.py --markdown docs/results.md "$@"
}
# The same files decoded otherwise. A mean-scale hyperprior's figures are from elsewhere.
real=cdc-small,quality=0,decoder=diffusion,prefixes=no
evaluate --data "$px64" --section px64 --model uqdm-small uqdm-exact cdc-small --output "$reports/px64" "$@"
evaluate --data "$kodak" --section kodak --output "$reports/kodak" --model uqdm-small uqdm-exact cdc-small \
    $real,steps=8,noise_scale=0.8 $real,steps=17,noise_scale=0.8 \
    $real,steps=17,noise_scale=0.8,seed=1 $real,steps=17,noise_scale=0.5 $real,steps=17,noise_scale=0 \
    --given "mean-scale hyperprior=0.198:29.36,0.461:32.95" "$@"
