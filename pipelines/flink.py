"""Ingesting on a Flink cluster: what its flags mean, how a job there is followed, how it fails.

The job is submitted as one jar that holds runner and pipeline (Beam's "uber jar"). So no job server, a Java
process beside ours, has to be there as long as the job, and none is left behind when we are killed.
"""

import argparse
import contextlib
import json
import shutil
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.runners.runner import PipelineResult

from featurestore.errors import RunnerError, SpecError
from pipelines.failures import system_error

FLINK_VERSION = "1.19"
CLUSTER_COMMAND = "python -m pipelines.flink_cluster"
JOB_SERVER_JAR = ".flink/job-server.jar"
POOL_PORT = 8083
"""Where each machine's Python worker pool listens, unless the flags say otherwise."""

POLL_SECONDS = 0.3
ENDED = ("FINISHED", "FAILED", "CANCELED")
LOST_SECONDS = 15
"""How long a JobManager may be silent before the job counts as lost."""


def is_flink(runner: str | None) -> bool:
    """Whether --runner names Flink, in any of the ways that Beam takes."""
    return (runner or "").lower().removesuffix("runner") == "flink"


def flink_defaults(given: argparse.Namespace) -> list[str]:
    """Return flags that make the cluster at ``given.flink_master`` usable, where none are given.

    The job leaves one TaskManager's worth of slots free, so that it goes on when one is lost.

    Raises:
        SpecError: --flink_master is missing.
        RunnerError: there is no Flink with TaskManagers, or no jar to send there.
    """
    if given.flink_master.startswith("["):  # Beam's [auto] and [local], which need its published job server
        problem = f"--runner FlinkRunner needs --flink_master HOST:PORT; `{CLUSTER_COMMAND} start` starts one"
        raise SpecError("command line", [problem])
    jar = given.flink_job_server_jar or JOB_SERVER_JAR
    if "://" not in jar and not Path(jar).is_file():
        remedy = f"`{CLUSTER_COMMAND} start` makes it, or name one with --flink_job_server_jar"
        raise RunnerError(f"no jar of Beam's Flink runner at {jar}: {remedy}")
    managers, slots = _size(given.flink_master)
    wanted = ["--flink_submit_uber_jar", f"--flink_job_server_jar={jar}"]
    if given.parallelism == -1:
        spare = slots // managers if managers > 1 else 0
        wanted.append(f"--parallelism={slots - spare}")
    if given.environment_type is None:
        pool = given.environment_config or f"localhost:{POOL_PORT}"
        wanted += ["--environment_type=EXTERNAL", f"--environment_config={pool}"]
    return wanted


def _size(master: str) -> tuple[int, int]:
    """Return the numbers of TaskManagers and of their slots."""
    try:
        overview = ask(master, "overview")
        managers, slots = overview["taskmanagers"], overview["slots-total"]
    except (OSError, LookupError, TypeError) as error:
        raise RunnerError(f"no Flink at --flink_master {master}: {error}") from error
    if not slots:
        raise RunnerError(f"the Flink at --flink_master {master} has no TaskManager")
    return managers, slots


def ask(master: str, path: str, method: str = "GET") -> dict[str, Any]:
    """Return what the JobManager's REST interface answers; OSError where it does not."""
    root = master if "://" in master else f"http://{master}"
    request = urllib.request.Request(f"{root.rstrip('/')}/{path}", method=method)  # noqa: S310 - http, as flagged
    try:
        with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310 - as above
            answer: dict[str, Any] = json.loads(response.read() or "{}")
    except (HTTPException, ValueError) as error:
        raise OSError(f"{root} answers what no Flink would: {error!r}") from error
    return answer


def run_on_flink(pipeline: beam.Pipeline) -> PipelineResult:
    """Submit the pipeline, wait until its job has ended, and return Beam's result; interrupted, cancel it.

    Raises:
        RunnerError: the job failed, or its JobManager was lost or cannot be reached.
        RuntimeError: a worker's disk or file failed; holds the worker's words.
    """
    try:
        result = pipeline.run()
    except (OSError, RuntimeError, ValueError) as error:
        raise RunnerError(f"Flink did not take the job, nothing was published: {error}") from error
    service = result._job_service  # Beam's own wait asks ever more rarely, and without a time limit
    submitted = service._jobs[result._job_id]
    submitted.delete_jar()  # the running job has its own copy
    shutil.rmtree(service._temp_dir, ignore_errors=True)
    job = _Job(submitted._master_url, f"jobs/{submitted._flink_job_id}")
    try:
        state = job.wait()
    except KeyboardInterrupt:
        job.cancel()
        raise
    if state != "FINISHED":
        raise job.failure(state)
    return result


@dataclass
class _Job:
    """A job on a cluster, by what the REST interface says of it."""

    master: str
    path: str

    def wait(self) -> str:
        """Return the state in which the job ended."""
        heard = time.monotonic()
        while True:
            try:
                state: str = ask(self.master, self.path)["state"]
                heard = time.monotonic()
                if state in ENDED:
                    return state
            except OSError as error:
                if time.monotonic() - heard > LOST_SECONDS or _is_missing(error):
                    raise self._lost(error) from error
            time.sleep(POLL_SECONDS)

    def _lost(self, error: OSError) -> RunnerError:
        what = "no longer knows the job" if _is_missing(error) else "no longer answers"
        return RunnerError(
            f"Flink's JobManager at {self.master} {what} ({error}), nothing was published: "
            "see to the cluster and run again"
        )

    def failure(self, state: str) -> Exception:
        """Return the error of a job that ended badly, with the reason in a worker's or in Flink's words."""
        try:
            entries = ask(self.master, f"{self.path}/exceptions")["exceptionHistory"]["entries"]
        except OSError:
            entries = []
        trace = entries[0]["stacktrace"] if entries else "no reason given"
        if system_error(trace):
            return RuntimeError(trace)
        pool = "; does a Python worker pool listen at --environment_config?" if "refused" in trace else ""
        return RunnerError(f"the job on Flink ended {state}, nothing was published: {reason(trace)}{pool}")

    def cancel(self) -> None:
        """Ask Flink to end the job."""
        with contextlib.suppress(OSError):
            ask(self.master, f"{self.path}?mode=cancel", "PATCH")


def _is_missing(error: OSError) -> bool:
    return isinstance(error, urllib.error.HTTPError) and error.code == HTTPStatus.NOT_FOUND


def reason(trace: str) -> str:
    """Return the line of a Java stack trace that says most: a Python worker's error, or the first cause."""
    lines = [line.strip() for line in trace.splitlines()]
    worker = [line.split(" [while running")[0] for line in lines if " [while running" in line]
    causes = [line.removeprefix("Caused by: ") for line in lines if line.startswith("Caused by: ")]
    return (worker or causes or lines)[-1 if worker or causes else 0]
