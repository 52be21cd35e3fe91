"""Decisions as lines of JSON: equal, bit for bit, for equal runs, live or replayed.

Scores are rounded to float32 as in messages. The digest of a run is the SHA-256 of its lines, each
with its line end: that of the file.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hashvpr_ros.errors import DatasetError
from hashvpr_ros.file_io import MB, read_text
from hashvpr_ros.types import Decision

_MOST_BYTES = 1000 * MB  # of a file: some million images
_SCORES = ("similarity", "distinctness", "probability", "sequence_support")


def line_of_decision(decision: Decision) -> str:
    """A decision of the recognizer."""
    hypotheses = [_hypothesis(h.keyframe.id, h.distance_bits, h) for h in decision.hypotheses]
    return _line(
        decision.stamp_ns,
        decision.camera,
        decision.reason.value,
        decision.keyframe_id,
        hypotheses,
    )


def line_of_message(stamp_ns: int, message: Any) -> str:
    """A PlaceHypotheses message, as `datasets.bag.read_own` gives it."""
    hypotheses = [_hypothesis(int(h.place_id), int(h.distance), h) for h in message.hypotheses]
    return _line(
        stamp_ns, str(message.camera), str(message.reason), int(message.keyframe_id), hypotheses
    )


def _hypothesis(place_id: int, distance_bits: int, scores: Any) -> dict[str, Any]:
    # Both have scores of these names.
    values = struct.pack(f"<{len(_SCORES)}f", *(getattr(scores, name) for name in _SCORES))
    rounded = struct.unpack(f"<{len(_SCORES)}f", values)
    return {
        "place": place_id,
        "distance": distance_bits,
        **dict(zip(_SCORES, rounded, strict=True)),
    }


def _line(
    stamp_ns: int, camera: str, reason: str, keyframe_id: int, hypotheses: list[dict[str, Any]]
) -> str:
    return json.dumps(
        {
            "stamp_ns": stamp_ns,
            "camera": camera,
            "reason": reason,
            "keyframe_id": keyframe_id,
            "hypotheses": hypotheses,
        }
    )


def digest(lines: Sequence[str]) -> str:
    """SHA-256 over all lines, as hexadecimal digits."""
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


def read_lines(path: Path) -> list[str]:
    """The lines of a file of decisions.

    Raises:
        DatasetError: it cannot be read, or holds something else.
    """
    try:
        lines = read_text(path, _MOST_BYTES, error=DatasetError).splitlines()
        for line in lines:
            if not isinstance(json.loads(line)["stamp_ns"], int):
                raise ValueError("a stamp that is no whole number")
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise DatasetError(
            f"{path}: is no file of decisions ({e}); give the decisions.jsonl of `hashvpr replay`"
        ) from e
    return lines


def first_difference(a: Sequence[str], b: Sequence[str]) -> str:
    """Where two runs part, as a sentence; empty where they are equal."""
    for i, (line_a, line_b) in enumerate(zip(a, b, strict=False)):
        if line_a != line_b:
            x, y = json.loads(line_a), json.loads(line_b)
            name = next((k for k in x if x[k] != y.get(k)), "hypotheses")
            values = f"{x.get(name)} and {y.get(name)}"
            return f"image {i} at {x['stamp_ns'] / 1e9:.3f} s: {name} {values}"
    if len(a) != len(b):
        return f"{len(a)} images and {len(b)}, equal as far as both go"
    return ""
