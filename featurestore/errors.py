"""The errors slotstore raises on purpose.

    SlotstoreError
    |-- SpecError              a spec or flag is wrong; nothing was touched       exit status 2
    |-- SourceError            the raw files cannot be used                       exit status 3
    |   `-- TooManyRejects     more bad records than max_reject_ratio allows
    |-- ArtifactError          something slotstore wrote is missing or altered    exit status 4
    |   |-- NotFound           no such store, snapshot, split, feature
    |   |-- VersionError       written by another format version
    |   `-- FingerprintError   two artifacts were made from different specs
    |-- StoreBusy              another ingestion holds the store                  exit status 5
    |-- QueryError             the SQL engine refused a statement                 exit status 6
    |-- TrainingError          training cannot start or go on                     exit status 7
    |-- RunnerError            the cluster an ingestion ran on failed             exit status 8
    `-- Interrupted            stopped when asked to; what was done is kept       exit status 130

A message says where, what it got, what it expected and what to do. Low layers
raise ``ValueError``; the boundary that knows the place raises one of these
``from`` it.
"""

import difflib
from collections.abc import Iterable
from typing import Self


class SlotstoreError(Exception):
    """Base of every error a user can cause; the command line prints it without a traceback."""

    exit_code = 1


class SpecError(SlotstoreError):
    """A spec or a flag is wrong. ``problems`` holds every problem found, one line each."""

    exit_code = 2

    def __init__(self, where: str, problems: Iterable[str]) -> None:
        self.where = where
        self.problems = list(problems)
        count = len(self.problems)
        head = f"{where}: {count} problem{'s' if count != 1 else ''}"
        super().__init__("\n".join([head, *(f"  - {problem}" for problem in self.problems)]))

    def __reduce__(self) -> tuple[type[Self], tuple[str, list[str]]]:
        """Pickle by the constructor's arguments: Beam carries errors from its workers."""
        return type(self), (self.where, self.problems)


class SourceError(SlotstoreError):
    """The raw files are missing, empty or of an unknown format."""

    exit_code = 3


class TooManyRejects(SourceError):
    """More records were rejected than ``max_reject_ratio`` allows; nothing was published."""


class ArtifactError(SlotstoreError):
    """A file slotstore wrote is missing, altered or unreadable."""

    exit_code = 4


class NotFound(ArtifactError):
    """The store, snapshot, split or feature asked for does not exist."""


class VersionError(ArtifactError):
    """The artifact was written by another version of the format."""


class FingerprintError(ArtifactError):
    """Two artifacts that must share a spec were made from different ones."""


class StoreBusy(SlotstoreError):
    """Another process is ingesting into the same store."""

    exit_code = 5


class QueryError(SlotstoreError):
    """The SQL engine refused a statement; the message is the engine's own."""

    exit_code = 6


class TrainingError(SlotstoreError):
    """Training cannot start or go on."""

    exit_code = 7


class RunnerError(SlotstoreError):
    """The cluster an ingestion should run on is not there, was lost, or failed; nothing was published."""

    exit_code = 8


class Interrupted(SlotstoreError):
    """The work was asked to stop, by Ctrl-C or a signal, and can be gone on with."""

    exit_code = 130


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the nearest of ``known``, or all of them if none is near."""
    names = list(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if near:
        return f" (did you mean {near[0]!r}?)"
    return f" (known: {', '.join(names)})" if names else ""
