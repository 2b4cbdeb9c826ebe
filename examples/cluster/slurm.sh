#!/usr/bin/env bash
# Trains on the nodes of a Slurm allocation: sbatch examples/cluster/slurm.sh configs/vgg11b_3x.yaml
# What follows the script's name goes to pipeline-launch.
#SBATCH --job-name=local-loss
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=08:00:00
#SBATCH --signal=INT@180  # three minutes before the end: the run ends with a checkpoint
set -euo pipefail

# of this job alone; srun hands the environment to every node
export RAY_AUTH_MODE=token RAY_worker_niceness=0
RAY_AUTH_TOKEN=$(openssl rand -hex 32)
export RAY_AUTH_TOKEN

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(srun --nodes=1 --ntasks=1 --nodelist="$first" hostname --ip-address | cut -d' ' -f1):6379

# starts Ray on every node, the command on the first, and stops Ray when the command ends
export RAY_ADDRESS=$address
exec srun --kill-on-bad-exit=0 ray symmetric-run --address "$address" \
    --min-nodes "$SLURM_JOB_NUM_NODES" --object-store-memory=80000000 --disable-usage-stats -- \
    pipeline-launch --engine ray --run-dir "runs/$SLURM_JOB_ID" "$@"
