"""A Dask scheduler and workers of this machine, for tests; they can be killed."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

SIZE = 256  # patches of a shard
DEADLINE = 400.0  # seconds: tests of other processes take their share of the cores


class Cluster:
    """A scheduler and workers that can be killed; a list of the images decoded; a file that holds workers mid-shard."""

    def __init__(self, folder):
        self.folder, self.processes, self.workers = folder, [], []
        self.log, self.hold = folder / "images.log", folder / "hold"
        self.address = self.start_scheduler()

    def _start(self, module, *arguments):
        environment = os.environ | {
            "IMAGE_LOG": str(self.log),
            "IMAGE_HOLD": str(self.hold),
            "PYTHONPATH": str(Path(__file__).parents[1]),
        }
        with (self.folder / "output.txt").open("a") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", f"distributed.cli.{module}", *arguments, "--no-dashboard"],
                env=environment,
                stdout=output,
                stderr=output,
                cwd=self.folder,
            )
        self.processes.append(process)
        return process

    def start_scheduler(self, port=0):
        file = self.folder / "scheduler.json"
        file.unlink(missing_ok=True)
        arguments = ("--host", "127.0.0.1", "--port", str(port), "--scheduler-file", str(file))
        self.scheduler = self._start("dask_scheduler", *arguments)
        return wait_for(lambda: file.is_file() and file.read_text() and json.loads(file.read_text())["address"])

    def start_worker(self):
        preload = str(Path(__file__).with_name("logged_images.py"))
        options = ("--nthreads", "1", "--no-nanny", "--host", "127.0.0.1", "--preload", preload)
        self.workers.append(self._start("dask_worker", self.address, *options, "--local-directory", str(self.folder)))

    def ready(self, workers):
        """Forget what was decoded, and replace workers that are gone."""
        self.log.unlink(missing_ok=True)
        self.workers = [worker for worker in self.workers if worker.poll() is None]
        while len(self.workers) < workers:
            self.start_worker()
        return self

    def decoded(self):
        """Which process decoded which shard's images: a list of (process, shard)."""
        lines = self.log.read_text().split("\n")[:-1] if self.log.exists() else []
        return [(int(line.split()[0]), int(line.split()[1][:5]) // SIZE) for line in lines]

    def stop(self):
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()


def wait_for(condition):
    until = time.monotonic() + DEADLINE
    while not (found := condition()):
        assert time.monotonic() < until, "it never happened"
        time.sleep(0.02)
    return found
