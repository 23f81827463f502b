"""The event log (``--log FILE``): one JSON object a line, for programs that watch a job.

Every line has ``time`` (ISO 8601, UTC) and ``event``; names and meanings of keys stay. Sizes are
bytes, durations seconds, shares go from 0 to 1. Later releases may add events and keys.

``job_started``     job, options (without secrets), driver_pid
``inputs_found``    inputs (lines of text: what was found and what is left out)
``estimate``        once, in the first minute: message, samples (that it is made from)
``worker_ready``    worker (number, from 0), node, pid: a process of this worker started
``worker_died``     worker, shards (that it ran), error
``attempt_failed``  shard, attempt, error
``shard_done``      shard, url, attempts, rows, ok, bad, filtered, picture_bytes, stream_bytes,
                    source_bytes, bytes (of the file written), seconds, stage_seconds
``shard_found``     shard: another job had committed it meanwhile
``shard_failed``    shard, attempts, error
``progress``        every ten seconds: seconds, fraction, input_bytes, total_bytes, shards_done,
                    shards_failed, shards_total, samples, bad, picture_bytes, stream_bytes,
                    bytes_in, bytes_out, images_per_second, bytes_in_per_second,
                    bytes_out_per_second (of the last minute), seconds_left (null if unknown),
                    stage_shares (of the workers' time), slowest_stage, failed_attempts, restarts,
                    workers (their number by state), driver_rss, worker_rss (by worker number)
``job_finished``    the summary (``Summary.to_json``)
``job_stopped``     the summary; ``stopped`` says why. Only error if the job was interrupted at once
``job_failed``      error: it ended before there was a summary

Others (``draining``, ``deadly_sample_search``, ``deadly_sample_found``, ...) come from the
scheduler, with ``shard``, ``key`` or ``error`` where they concern one.
"""

import dataclasses
import json
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, TextIO

from codec.errors import StrataError, printable

from ...stores.urls import without_secrets
from .summary import Summary

SECRET_OPTIONS = ("input_options", "output_options", "source_options", "storage_options")


class EventLogError(StrataError):
    """The event log cannot be written; the message names the path."""


class EventLog:
    """Appends events to a local file, a line at a time; without a path it writes nothing.

    Raises EventLogError at once if the path cannot be written. If the disk fills up later, there is
    a warning, and the rest of the log is lost.
    """

    def __init__(self, path: str | None) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._file: TextIO | None = None
        if path is None:
            return
        if "://" in path:
            raise EventLogError(f"--log {path}: the event log must be a local file")
        try:
            self._file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115
            if _ends_in_midline(path):
                self._file.write("\n")
        except OSError as error:
            reason = error.strerror or str(error)
            raise EventLogError(
                f"--log {path}: cannot be written ({reason}); choose another file"
            ) from error

    def write(self, event: str, /, **fields: Any) -> None:
        """Append an event. Values that JSON does not have are written as text."""
        if self.path is None:
            return
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        # ASCII, because keys may hold surrogates, which no encoding has.
        line = json.dumps(
            {"time": time, "event": event, **_public(fields)}, default=str, ensure_ascii=True
        )
        with self._lock:
            if self._file is None:
                return
            try:
                self._file.write(line + "\n")
            except (OSError, ValueError) as error:
                self._file = None
                what = printable(f"no more events are logged: {self.path}: {error}")
                print(f"warning: {what}", file=sys.stderr)

    def finish(self, summary: Summary) -> None:
        self.write("job_stopped" if summary.stopped else "job_finished", **summary.to_json())

    def close(self) -> None:
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None


@contextmanager
def job_log(path: str | None, job: str, options: Any) -> Iterator[EventLog]:
    """The log of one job. Writes its start, and its end if that is an exception.

    ``options`` is the job's dataclass of options; storage options are left out. The caller ends
    with ``log.finish(summary)``. Raises EventLogError.
    """
    log = EventLog(path)
    try:
        log.write("job_started", job=job, options=public_options(options), driver_pid=os.getpid())
        yield log
    except KeyboardInterrupt:
        log.write("job_stopped", error="interrupted")
        raise
    except BaseException as error:
        log.write("job_failed", error=f"{type(error).__name__}: {error}")
        raise
    finally:
        log.close()


def public_options(options: Any) -> dict[str, Any]:
    """A dataclass of options as JSON, with only the names of storage options."""
    values: dict[str, Any] = dataclasses.asdict(options)
    for name in SECRET_OPTIONS:
        if values.get(name):
            values[name] = sorted(values[name])
    return values


def _public(value: Any) -> Any:
    """``value`` without the secrets of URLs in it."""
    if isinstance(value, str):
        return without_secrets(value)
    if isinstance(value, Mapping):
        return {str(key): _public(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_public(item) for item in value]
    return value


def _ends_in_midline(path: str) -> bool:
    """Whether the last job to write here was killed while it wrote."""
    if not os.path.isfile(path) or not os.path.getsize(path):  # also /dev/stdout, pipes
        return False
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
