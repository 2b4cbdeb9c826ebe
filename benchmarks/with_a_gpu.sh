#!/bin/sh
# The first things to run where a GPU is at hand, from the root of a clone (installed or not):
#
#     sh benchmarks/with_a_gpu.sh          on device 0, some minutes
#     sh benchmarks/with_a_gpu.sh 0-3      then also predictions against measurements on several
#
# What fails keeps nothing else from running. Results lie in benchmarks/results/.

all=${1:-0}
first=${all%%[,-]*}
on_one="--gpus $first --stages 2"
set -x

# what is skipped without a device: kernels, recorded steps, CUDA IPC, equality with the CPU
python -m pytest -p no:benchmark -k "gpu or cuda or device or graphs"
python -m launch.verify configs/vgg8b.yaml $on_one --steps 20 \
    --set data.name=synthetic --set data.size=32 --set data.channels=3
python -m benchmarks.links --gpu "$first"
python -m benchmarks.memory --device "cuda:$first"
python -m benchmarks.memory --device "cuda:$first" --precision bf16
python -m benchmarks.throughput $on_one --network vgg8b --losses predsim --precision bf16 \
    --rounds 1 --seconds 5
if [ "$all" != "$first" ]; then
    python -m benchmarks.scaling --network vgg11b_3x --gpus "$first" --gpus "$all" --stages 4,8 \
        --set runtime.precision=bf16
fi
python -m benchmarks.results
