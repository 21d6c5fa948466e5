#!/bin/bash
# Run the pipeline on all nodes of a SLURM job, in a project folder that every node has under the same path:
#
#     sbatch runs/slurm.sh            # or with stages: sbatch runs/slurm.sh shard weights
#
# params.yaml needs `dask: {scheduler: .dask/scheduler.json}`. The first node runs DVC and the scheduler; each node runs
# a worker per core. Training is not Dask's: run it in a job of its own, on GPUs.
#SBATCH --job-name=effimini
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --mem-per-cpu=2G
#SBATCH --time=24:00:00
set -euo pipefail
export PATH=$PWD/.venv/bin:$PATH EFFIMINI_STORE=${EFFIMINI_STORE:-$PWD/.effimini}
export OMP_NUM_THREADS=1 DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED=False  # see docs/troubleshooting.md
file=$PWD/.dask/scheduler.json
rm -rf .dask && mkdir .dask
trap 'trap - EXIT TERM INT; kill $(jobs -p) 2>/dev/null; wait; rm -rf .dask' EXIT TERM INT

dask scheduler --scheduler-file "$file" --port 0 --no-dashboard 2>.dask/scheduler.log &
srun dask worker --scheduler-file "$file" --nworkers "$SLURM_CPUS_PER_TASK" --nthreads 1 --memory-limit 0 \
  --local-directory "${TMPDIR:-/tmp}" --no-dashboard 2>.dask/workers.log &
timeout 60 sh -c "until [ -s $file ]; do sleep 0.2; done"
python -c "
from distributed import Client
Client(scheduler_file='$file').wait_for_workers($SLURM_NTASKS * $SLURM_CPUS_PER_TASK, timeout=300)"
dvc repro "$@"
