"""Beam flags: which are known, and which runner they mean."""

import argparse
import os
from collections.abc import Sequence

import apache_beam as beam
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner, worker_handlers
from apache_beam.runners.runner import PipelineResult, PipelineRunner

from featurestore.errors import SpecError, did_you_mean
from pipelines.flink import flink_defaults, is_flink, run_on_flink

LOCAL_RUNNERS = (None, "DirectRunner", "FnApiRunner")

# Beam's local runner sends what a worker has written once a second, from a thread of its own. It may do so
# in the middle of an element, whose rest is then read as another: elements are lost without an error, or
# gigabytes are asked for. At 0 a buffer is sent when it is full and when the bundle ends, as elsewhere.
assert worker_handlers.DATA_BUFFER_TIME_LIMIT_MS >= 0
worker_handlers.DATA_BUFFER_TIME_LIMIT_MS = 0


def pipeline_options(flags: Sequence[str], own: Sequence[str] = ()) -> PipelineOptions:
    """Parse Beam flags; SpecError names every one that Beam does not know, instead of ignoring it.

    ``own``: flags of the calling command, to be suggested where one is misspelt.
    """
    parser = _known_flags()
    given, unknown = parser.parse_known_args(list(flags))
    known = [*own, *(option for action in parser._actions for option in action.option_strings)]
    problems = [f"unknown flag {flag}{_suggestion(flag, known)}" for flag in unknown if flag.startswith("-")]
    if unknown:
        raise SpecError("command line", problems or [f"unexpected argument {text!r}" for text in unknown])
    cluster = flink_defaults(given) if is_flink(given.runner) else []
    options = PipelineOptions([*flags, *_local_defaults(flags), *cluster])
    if options.view_as(DirectOptions).direct_num_workers < 0:
        raise SpecError("command line", ["--direct_num_workers must be at least 0 (0: one for each core)"])
    return options


def _local_defaults(flags: Sequence[str]) -> list[str]:
    """Return a thread for each core, where the flags do not say how the local runner works."""
    given = {flag.split("=", maxsplit=1)[0] for flag in flags}
    mode = [] if "--direct_running_mode" in given else ["--direct_running_mode=multi_threading"]
    if "--direct_num_workers" in given or (not mode and "in_memory" in " ".join(flags)):
        return mode
    return [*mode, f"--direct_num_workers={available_cores()}"]


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _suggestion(flag: str, known: Sequence[str]) -> str:
    near = did_you_mean(flag.split("=", maxsplit=1)[0], known)
    return near if "did you mean" in near else ": neither slotstore nor Apache Beam has it"


def _known_flags() -> argparse.ArgumentParser:
    parser = _Parser(prog="slotstore ingest", allow_abbrev=False)
    for options in PipelineOptions.__subclasses__():
        options._add_argparse_args(parser)  # as Beam itself collects its flags
    return parser


class _Parser(argparse.ArgumentParser):
    """Accepts Beam's value-provider arguments, and raises instead of exiting."""

    def add_value_provider_argument(self, *names: str, **options: object) -> None:
        """Add an argument whose value Beam may fill in at run time."""
        self.add_argument(*names, **options)  # type: ignore[arg-type]

    def error(self, message: str) -> None:  # type: ignore[override]
        raise SpecError("command line", [message])


def choose_runner(options: PipelineOptions) -> PipelineRunner | None:
    """Return the runner to use, None for the one the flags name.

    On one machine this is Beam's own portable runner, by default with a thread for each core: Arrow,
    which does the work, releases the interpreter's lock. Beam's switching DirectRunner would first look for a
    Prism binary on the network.
    """
    return FnApiRunner() if options.view_as(StandardOptions).runner in LOCAL_RUNNERS else None


def run(pipeline: beam.Pipeline) -> PipelineResult:
    """Run the pipeline to its end; RuntimeError or RunnerError where it fails."""
    if is_flink(pipeline.options.view_as(StandardOptions).runner):
        return run_on_flink(pipeline)
    result = pipeline.run()
    result.wait_until_finish()
    return result
