"""Frames of video files and cameras, and a video file of drawn frames, by PyAV.

No camera has ever been tried: what is tested is the parsing of its name, and the loop over frames
of a stand-in.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

# Endings of names of video files.
SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ts", ".webm", ".wmv"}
# H.264 first, which everything plays.
ENCODERS = ("libx264", "libopenh264", "mpeg4")
# Ticks of a second in what is written: whole numbers of them are a frame of 24, 25, 30, 29.97, 50
# or 60 a second, and MPEG-4 allows no finer ones than 65535.
TICKS = 60000
# Seconds that the last packet of a whole file may end before the duration that the file declares.
SLACK = 0.5


class Frame(NamedTuple):
    """A frame upright, [H, W, 3] uint8 RGB; its number from 0, and its time in seconds from 0."""

    pixels: np.ndarray
    number: int
    time: float

    def read(self) -> np.ndarray:
        """Return the pixels, as `finding.Input` reads them."""
        return self.pixels


@dataclass
class Video:
    """An open video file or camera.

    rate       frames per second, as far as known
    count      frames that a file declares; 0: unknown
    has_sound  whether there is sound, which is not read
    ended      after its frames: what is wrong with them, such as where they end too early; None:
               nothing
    """

    path: Path
    container: Any
    stream: Any
    rate: Fraction
    count: int
    has_sound: bool
    ended: str | None = None


def camera(name: str | Path) -> str | None:
    """Return the device of a camera, given as camera:0 or /dev/video0; None for anything else."""
    match = re.fullmatch(r"(?:camera:|/dev/video)(\d+)", str(name))
    return f"/dev/video{match[1]}" if match else None


def is_video(path: Path) -> bool:
    """Tell whether a path names a camera or, by its ending, a video file."""
    return camera(path) is not None or path.suffix.lower() in SUFFIXES


@contextmanager
def opened(path: Path) -> Iterator[Video]:
    """Open a video file or a camera; what is wrong with it becomes one ValueError that names it."""
    av, device = require(path), camera(path)
    try:
        container = av.open(device or str(path), format="v4l2" if device else None)
    except FileNotFoundError:
        told = f"{path}: no such file" if device is None else f"{path}: there is no {device}"
        raise ValueError(told) from None
    # Of FFmpeg's kinds of errors some are OSErrors, some are ValueErrors, and some neither.
    except (av.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(
            f"{path}: cannot be opened as a video ({reason}): it is none, or it was cut off"
        ) from None
    with container:
        streams = container.streams
        if not streams.video:
            what = "only sound" if streams.audio else "or was cut off and lost its index"
            raise ValueError(f"{path}: has no video stream, {what}")
        stream = streams.video[0]
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        yield Video(path, container, stream, rate, stream.frames or 0, bool(streams.audio))


def require(path: Path) -> Any:
    """Return the library that reads videos. Raises ValueError without it."""
    try:
        import av
    except ImportError:
        need = f"{path}: videos and cameras need the package av"
        raise ValueError(f"{need}: pip install 'maskrcnn-triton[video]'") from None
    return av


def frames(video: Video, every: int = 1, seconds: float | None = None) -> Iterator[Frame]:
    """Yield every N-th frame of a video, and at its end tell in `ended` what is wrong.

    seconds  end after so many; None: at the end of the file

    Of a damaged file, frames that cannot be decoded are passed over.
    Raises ValueError if no frame can be decoded.
    """
    av = require(video.path)
    first, number, reached, damaged = None, 0, 0.0, []
    try:
        for packet in video.container.demux():
            start = packet.dts if packet.pts is None else packet.pts
            if start is not None:
                reached = max(reached, float((start + (packet.duration or 0)) * packet.time_base))
            if packet.stream is not video.stream:
                continue
            try:
                decoded = packet.decode()
            except av.FFmpegError:
                damaged.append(float((start or 0) * packet.time_base))
                continue
            for frame in decoded:
                time = float(number / video.rate) if frame.time is None else frame.time
                first = time if first is None else first
                if seconds is not None and time - first >= seconds:
                    return
                if number % every == 0:
                    yield Frame(_upright(frame), number, time - first)
                number += 1
    except av.FFmpegError as error:
        video.ended = f"frames end after number {number - 1}: {error.strerror}"
    if not number:
        raise ValueError(f"{video.path}: no frame of it can be decoded; it is damaged")
    begin, whole = ((x or 0) / 1e6 for x in (video.container.start_time, video.container.duration))
    if video.ended is None and reached - begin < whole - SLACK:
        lasted = f"at {reached - begin:.1f} s of the {whole:.1f} s that it declares"
        video.ended = f"frames end after number {number - 1}, {lasted}: it is cut off or damaged"
    elif video.ended is None and damaged:
        parts = f"{len(damaged)} damaged part{'s were' if len(damaged) > 1 else ' was'} passed over"
        video.ended = f"{parts}, the first at {damaged[0] - begin:.2f} s"


def _upright(frame):
    pixels = frame.to_ndarray(format="rgb24")
    # Counterclockwise, in degrees.
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90) % 4))


class Film:
    """A video file that is written frame by frame, of the first frame's size.

    file  open for writing, and seekable
    rate  frames per second that players are told; each frame is shown from its own time on
    """

    def __init__(self, file: IO, rate: Fraction):
        import av

        self.av, self.rate, self.last = av, rate, -1
        self.container = av.open(file, "w", format="mp4")
        self.stream: Any = None

    def add(self, image: np.ndarray, time: float) -> None:
        """Append a frame [H, W, 3] uint8 RGB, shown from `time` on, in seconds."""
        height, width = image.shape[:2]
        if self.stream is None:
            name = next(name for name in ENCODERS if name in self.av.codecs_available)
            self.stream = self.container.add_stream(name, rate=self.rate)
            # Colours are stored for squares of 2x2 pixels, so that sides are even.
            self.stream.width, self.stream.height = width + width % 2, height + height % 2
            self.stream.pix_fmt = "yuv420p"
            self.stream.codec_context.time_base = Fraction(1, TICKS)
            # libx264 aims at a quality instead.
            rate = 0 if name == "libx264" else int(width * height * self.rate / 5)
            self.stream.bit_rate = rate
        even = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        frame = self.av.VideoFrame.from_ndarray(even, format="rgb24")
        # A video may change its size on the way, and this one cannot.
        frame = frame.reformat(self.stream.width, self.stream.height, "yuv420p")
        self.last = max(self.last + 1, round(time * TICKS))
        frame.pts, frame.time_base = self.last, Fraction(1, TICKS)
        self.container.mux(self.stream.encode(frame))

    def close(self) -> None:
        """Write what is left, and the index."""
        if self.stream is not None:
            self.container.mux(self.stream.encode(None))
        self.container.close()
