#!/usr/bin/env bash
#SBATCH --job-name=ppo-upgd
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

# Trains one arm across as many time limits and preemptions as it takes.
#   sbatch examples/slurm.sh --env Ant-v4 --opt upgd --seeds 30 --steps 20e6 --no-anneal
# RUN names the run directory; a job that finds a run there continues it.

RUN=${RUN:-runs/slurm-${SLURM_JOB_ID:-local}}
PYTHON=${PYTHON:-.venv/bin/python}

if [ -f "$RUN/config.yaml" ]; then
    "$PYTHON" train.py --resume "$RUN" &
else
    "$PYTHON" train.py --out "$RUN" "$@" &
fi
training=$!

# SLURM sends its signals to this shell (B:TERM); hand them on. A trapped signal ends `wait`, so
# wait again until the run itself has ended.
trap 'kill -TERM "$training"' TERM
wait "$training"
code=$?
while kill -0 "$training" 2>/dev/null; do
    wait "$training"
    code=$?
done

if [ "$code" -eq 75 ] && [ -n "$SLURM_JOB_ID" ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
