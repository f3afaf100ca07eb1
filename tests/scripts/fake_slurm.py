"""Stands in for a SLURM of one node: sbatch, srun, sacct, squeue and scontrol on PATH call it.

What it was asked for lies in the folder FAKE_SLURM. Of a submitted array one job runs after the
other; a file ``time-is-up`` there has the one that runs get USR2, as before its end.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

STATE = Path(os.environ["FAKE_SLURM"])
NUMBER = "17"


def jobs(script: str) -> list[str]:
    """The ids of the jobs of a script."""
    array = re.search(r"^#SBATCH --array=0-(\d+)%", script, re.MULTILINE)
    return [f"{NUMBER}_{i}" for i in range(int(array[1]) + 1)] if array else [NUMBER]


def run_all() -> None:
    """Run the jobs, those that are queued again once more."""
    script = STATE / "script.sh"
    for job in jobs(script.read_text()):
        again = STATE / f"requeued-{job}"
        again.touch()
        while again.exists():
            again.unlink()
            ids = {"SLURM_JOB_ID": job}
            if "_" in job:
                ids |= {"SLURM_ARRAY_JOB_ID": NUMBER, "SLURM_ARRAY_TASK_ID": job.split("_")[1]}
            env = os.environ | ids | {"CUDA_VISIBLE_DEVICES": "5"}
            process = subprocess.Popen(["bash", script], env=env, start_new_session=True)
            while process.poll() is None:
                if (STATE / "time-is-up").exists():
                    (STATE / "time-is-up").unlink()
                    signal_all(process.pid)
                time.sleep(0.02)
        (STATE / f"ended-{job}").touch()


def signal_all(leader: int) -> None:
    """Send USR2 to all processes of the job, but for the shell of the script, as SLURM does."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(entry.name)] = int(
                (entry / "stat").read_text().rpartition(")")[2].split()[1]
            )
        except OSError:
            pass
    for pid in parents:
        above = parents[pid]
        while above in parents and above != leader:
            above = parents[above]
        if above == leader:
            os.kill(pid, signal.SIGUSR2)


def main(name: str, words: list[str]) -> None:
    if name == "sbatch":
        shutil.copy(words[-1], STATE / "script.sh")
        command = [sys.executable, __file__, "node"]
        with open(STATE / "node.txt", "w") as log:
            subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        print(f"Submitted batch job {NUMBER}")
    elif name == "node":
        run_all()
    elif name == "srun":
        options = {}
        while words[0].startswith("--"):
            option = words.pop(0)
            options[option] = "" if option == "--unbuffered" else words.pop(0)
        out, err = (
            re.sub("%A_%a|%j", os.environ["SLURM_JOB_ID"], options[name]).replace("%t", "0")
            for name in ("--output", "--error")
        )
        with open(out, "a") as stdout, open(err, "a") as stderr:
            os.dup2(stdout.fileno(), 1)
            os.dup2(stderr.fileno(), 2)
        os.execvp(words[0], words)
    elif name == "scontrol":
        (STATE / f"requeued-{words[1]}").touch()
    elif (STATE / "script.sh").exists():
        every = jobs((STATE / "script.sh").read_text())
        ended = [job for job in every if (STATE / f"ended-{job}").exists()]
        if name == "squeue":
            print("\n".join(job for job in every if job not in ended))
        if name == "sacct":
            print("JobID|State|NodeList")
            for job in every:
                print(f"{job}|{'COMPLETED' if job in ended else 'RUNNING'}|node1")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
