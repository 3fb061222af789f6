"""Where clips and windows lie in time: exact fractions, shared by audio and video."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

from bindsearch.errors import DecodeError
from bindsearch.types import Span

MAX_WINDOWS = 1_000_000
"""Windows of one recording above which it is not cut: its length, or the window, cannot be meant."""

CUT_STAGE = "cut"
"""Stage of the error that says so."""


def clip_starts(duration_s: float, clip_s: float, clips: int) -> list[Fraction]:
    """Spread the starts of equally long clips evenly over a recording.

    Args:
        duration_s: length of the recording; taken as the exact value of the double.
        clip_s: length of a clip.
        clips: how many; the first starts at 0, the last ends with the recording.

    Returns:
        Starts in seconds as exact fractions; all zero where the recording is no longer than a clip. (In floating point,
        a quarter of the starts would come out one sample off.)

    Source: golden preprocess/audio_clip_starts.json, preprocess/video_frame_table.json.
    """
    room = Fraction(max(duration_s - clip_s, 0.0))
    step = room / max(clips - 1, 1)
    return [step * number for number in range(clips)]


def windows(duration_s: float, window_s: float, name: str = "recording") -> list[Span]:
    """Cut a recording in windows that follow each other.

    Args:
        duration_s: length of the recording.
        window_s: length of a window; the last takes a rest that is shorter than half of it, too.
        name: of the recording, for the message.

    Returns:
        Start and end in seconds of each, on multiples of `window_s`; [] where one window holds it all.

    Raises:
        DecodeError: stage CUT_STAGE: more than MAX_WINDOWS.
    """
    if duration_s / window_s > MAX_WINDOWS:
        what = (
            f"{duration_s:g} s in windows of {window_s:g} s are over {MAX_WINDOWS:,} items; longer ones: --window 3600"
        )
        raise DecodeError(name, what, CUT_STAGE)
    count = max(1, int(duration_s / window_s + 0.5))
    if count == 1:
        return []
    edges = [number * window_s for number in range(count)] + [duration_s]
    return [(float(start), float(end)) for start, end in pairwise(edges)]
