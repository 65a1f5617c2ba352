"""Scalars for TensorBoard.

Written here record by record, because TensorBoard's own writer puts the host name in the file's name and writes
from a thread, which loses the last lines in a kill and answers a full disk with a traceback.
"""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tenfold.shared._files import append_whole


def append_scalars(directory: Path, row: Mapping[str, Any]) -> None:
    """Append a row's numbers at its ``step`` to the directory's event file, which is made where there is none."""
    from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[import-untyped]
    from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]

    path = next(directory.glob("events.out.*"), None)
    now = time.time()
    if path is None:
        path = directory / f"events.out.tfevents.{int(now):010d}.tenfold"
        append_whole(path, _record(Event(wall_time=now, file_version="brain.Event:2")))
    scalars = [
        Summary.Value(tag=name, simple_value=value)
        for name, value in row.items()
        if name != "step" and value is not None
    ]
    append_whole(path, _record(Event(wall_time=now, step=row["step"], summary=Summary(value=scalars))))


def remove_events(directory: Path) -> None:
    """Remove the directory's event files."""
    for path in directory.glob("events.out.*"):
        path.unlink()


def _record(event: Any) -> bytes:
    from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]

    buffer = io.BytesIO()
    RecordWriter(buffer).write(event.SerializeToString())
    return buffer.getvalue()
