#!/bin/bash
#SBATCH --job-name=affnorm_zoo
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --signal=TERM@120
#SBATCH --requeue
# One launcher a machine. Two minutes before its time is up Slurm sends SIGTERM: the run saves and stops, and goes on
# from there when it is queued again.
set -u
address=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun bash -c "accelerate launch --config_file configs/accelerate/two_nodes.yaml \
  --num_machines $SLURM_NNODES --num_processes $((SLURM_NNODES * 8)) --machine_rank \$SLURM_NODEID \
  --main_process_ip $address scripts/train.py $* --output runs/$SLURM_JOB_NAME --resume auto"
grep -q '"state": "preempted"' "runs/$SLURM_JOB_NAME/run_state.json" && scontrol requeue "$SLURM_JOB_ID"
