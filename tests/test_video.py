"""engine.video and engine.filmed: videos are drawn and listed, damaged ones as far as they go."""

import csv
import json
import os
import signal
import struct
import sys
from fractions import Fraction
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from PIL import Image
from support.spots import CATEGORIES, Spots, spot, write_video

from accelerated import processes
from accelerated.command_line import loading
from accelerated.drawing.detections import color, draw
from accelerated.engine import video
from accelerated.engine.predict import predict
from accelerated.structures import Detections

# A spot that moves two columns a frame.
MOVING = [spot(2 * i, 8) for i in range(12)]


@pytest.fixture
def clip(tmp_path):
    return write_video(tmp_path / "clip.mp4", MOVING)


def frames(path):
    """Rate, codec, streams, and (time, pixels) of each frame of a video."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        shown = [(f.time, f.to_ndarray(format="rgb24")) for f in container.decode(stream)]
        name = stream.codec_context.name
        return stream.average_rate, name, len(container.streams), shown


def files(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def turned(path, matrix):
    """Write the rotation of a phone into an MP4 file: the matrix of its first track."""
    content = bytearray(path.read_bytes())
    # Behind the version, two times, the track's id, its duration, its layer and its volume.
    start = content.index(b"tkhd") + 4 + 40
    values = [number << 16 for number in matrix] + [0, 0, 1 << 30]
    content[start : start + 36] = struct.pack(">9i", *values)
    path.write_bytes(content)


def test_a_video_is_drawn_and_listed(clip, tmp_path):
    saved = ("json", "png", "csv")
    result = predict(Spots(), [clip], tmp_path / "out", saved=saved, every=3, batch_size=3)
    [seen] = result.videos
    assert (seen.frames, seen.objects, seen.has_sound, seen.ended) == (4, 4, False, None)
    assert not result.failed and result.predictions["images"] == []
    assert files(tmp_path / "out") == ["clip.csv", "clip.jsonl", "clip.mp4"]
    assert [Path(name).name for name in seen.written] == ["clip.mp4", "clip.jsonl", "clip.csv"]
    rate, codec, streams, shown = frames(tmp_path / "out" / "clip.mp4")
    assert (rate, streams) == (Fraction(25, 3), 1) and codec in ("h264", "mpeg4")
    assert [time for time, _ in shown] == pytest.approx([0, 0.12, 0.24, 0.36])
    assert shown[0][1].shape == (480, 640, 3)
    # White, seen through the color of class 2 and not through that of the first object.
    seen_through = [0.55 * 255 + 0.45 * np.array(color(k)) for k in (0, 1)]
    first, second = (np.abs(shown[0][1][200, 80] - rgb).mean() for rgb in seen_through)
    assert second < 12 < first
    lines = [json.loads(x) for x in (tmp_path / "out" / "clip.jsonl").read_text().splitlines()]
    assert [(x["frame"], x["time"], x["width"], x["height"]) for x in lines] == [
        (i, pytest.approx(i / 25), 64, 48) for i in (0, 3, 6, 9)
    ]
    lefts = [x["annotations"][0]["bbox"][0] for x in lines]
    assert lefts == pytest.approx([0, 6, 12, 18], abs=1.5)
    assert lines[0]["annotations"][0]["class"] == "class 2"
    assert lines[0]["annotations"][0]["segmentation"]["size"] == [48, 64]
    with (tmp_path / "out" / "clip.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["frame"] for row in rows] == ["0", "3", "6", "9"]
    assert [float(row["x"]) for row in rows] == lefts


def test_pictures_and_videos_together(clip, tmp_path):
    Image.fromarray(spot(0, 0)).save(tmp_path / "clip.png")
    result = predict(Spots(), [tmp_path, clip], tmp_path / "out")
    assert files(tmp_path / "out") == ["clip.jsonl", "clip.mp4", "clip.png", "predictions.json"]
    assert len(result.predictions["images"]) == 1 and len(result.videos) == 1
    # In a folder it was passed over; it counts where it is named.
    assert (result.found.films, result.found.others) == (1, 0)
    (tmp_path / "clip.png").unlink()
    with pytest.raises(ValueError, match="videos in a folder are read if they are named"):
        predict(Spots(), [tmp_path], tmp_path / "out")
    with pytest.raises(ValueError, match=r"clip\.mp4 is an input video and would be overwritten"):
        predict(Spots(), [clip], tmp_path)


@pytest.mark.parametrize("encoders", [("libx264",), ("missing", "mpeg4")])
def test_odd_sides_and_odd_rates(tmp_path, monkeypatch, encoders):
    if encoders[-1] not in av.codecs_available:
        pytest.skip(f"this build of FFmpeg has no {encoders[-1]}")
    monkeypatch.setattr(video, "ENCODERS", encoders)
    rate, drawn = Fraction(30000, 1001), tmp_path / "a.mp4"
    images = [spot(i, 3, size=(31, 33)) for i in range(9)]
    with drawn.open("wb") as file:
        film = video.Film(file, rate)
        for index, image in enumerate(images):
            film.add(image, float(index / rate))
        film.close()
    read_rate, _, _, shown = frames(drawn)
    assert read_rate == rate and len(shown) == 9
    pixels = shown[4][1].astype(int)
    assert pixels.shape == (32, 34, 3)
    assert np.abs(pixels[:31, :33] - images[4]).mean() < 8


@pytest.mark.parametrize(
    ("matrix", "place"),
    [((0, 1, 0, -1, 0, 0), "right"), ((0, -1, 0, 1, 0, 0), "left"), ((-1, 0, 0, 0, -1, 0), "180")],
)
def test_a_phone_held_upright(tmp_path, matrix, place):
    """A spot at the left above, in a frame that players turn by 90, 270 or 180 degrees."""
    clip = write_video(tmp_path / "phone.mp4", [spot(0, 0)] * 3)
    turned(clip, matrix)
    predict(Spots(), [clip], tmp_path / "out")
    line = json.loads((tmp_path / "out" / "phone.jsonl").read_text().splitlines()[0])
    sides = (64, 48) if place == "180" else (48, 64)
    assert (line["width"], line["height"]) == sides
    corner = {"right": (32, 0), "left": (0, 48), "180": (48, 32)}[place]
    assert line["annotations"][0]["bbox"][:2] == pytest.approx(corner, abs=1.5)
    assert frames(tmp_path / "out" / "phone.mp4")[3][0][1].shape == (
        10 * sides[1],
        10 * sides[0],
        3,
    )


def test_colors_stay_the_same_from_frame_to_frame():
    """Objects have the color of their class, whatever their rank is."""
    boxes = torch.tensor([[2.0, 2, 20, 20], [30, 2, 50, 20]])
    image, names = np.zeros((40, 60, 3), np.uint8), ["a", "b"]
    shown = []
    for labels in ([1, 2], [2, 1]):
        flipped = boxes if labels[0] == 1 else boxes.flip(0)
        found = Detections(flipped, torch.tensor([0.9, 0.8]), torch.tensor(labels), None)
        drawn = draw(image, found, names, by_class=True)
        shown.append((tuple(drawn[20, 10]), tuple(drawn[20, 40])))
    assert shown[0] == shown[1] == (color(0), color(1))


def test_sound_is_dropped_and_that_is_said(tmp_path, command, monkeypatch):
    monkeypatch.setattr(loading, "load_model", lambda *_: (Spots(), CATEGORIES))
    clip = write_video(tmp_path / "clip.mov", MOVING[:3], sound=True)
    words = (
        "predict",
        "model",
        clip,
        "--output",
        tmp_path / "out",
        "--device",
        "cpu",
        "--every",
        2,
    )
    code, out, error = command(*words)
    assert code == 0, error
    assert "in 2 frames. Written: " in out and "The drawn video is without sound." in out


def test_what_is_no_video(tmp_path, command):
    (tmp_path / "text.mp4").write_text("no video\n" * 9)
    write_video(tmp_path / "sound.mp4", [], sound=True)
    whole = write_video(tmp_path / "whole.mp4", MOVING).read_bytes()
    # Without the index, which stands at the end.
    (tmp_path / "cut.mp4").write_bytes(whole[: whole.index(b"moov") - 400])
    inputs = [tmp_path / f"{name}.mp4" for name in ("text", "sound", "cut", "none")]
    result = predict(Spots(), [*inputs, "camera:77"], tmp_path / "out")
    expected = (
        "text.mp4: cannot be opened as a video (Invalid data",
        "sound.mp4: has no video stream, only sound",
        "cut.mp4: ",
        "none.mp4: no such file",
        "camera:77: there is no /dev/video77",
    )
    for said, (_, reason) in zip(expected, result.failed, strict=True):
        assert said in reason
    assert "cut off" in result.failed[2][1]
    assert files(tmp_path / "out") == []


def test_a_video_that_is_cut_off_is_kept_as_far_as_it_goes(tmp_path, command):
    whole = write_video(tmp_path / "whole.mkv", MOVING * 4).read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) * 6 // 10])
    [seen] = predict(Spots(), [tmp_path / "cut.mkv"], tmp_path / "out").videos
    assert 20 < seen.frames < 35
    assert f"frames end after number {seen.frames - 1}, at " in seen.ended
    assert "of the 1.9 s that it declares: it is cut off or damaged" in seen.ended
    assert len(frames(tmp_path / "out" / "cut.mp4")[3]) == seen.frames
    # To end early on demand is no damage.
    short = predict(Spots(), [tmp_path / "whole.mkv"], tmp_path / "short", seconds=0.4).videos[0]
    assert (short.frames, short.ended) == (10, None)


def test_damage_on_the_way_is_passed_over(tmp_path):
    clip = write_video(tmp_path / "clip.avi", MOVING)
    content = bytearray(clip.read_bytes())
    # The data of the fifth frame.
    start = content.index(b"movi")
    for _ in range(5):
        start = content.index(b"00dc", start + 1)
    size = struct.unpack("<I", content[start + 4 : start + 8])[0]
    content[start + 8 : start + 8 + size] = bytes(size)
    clip.write_bytes(content)
    [seen] = predict(Spots(), [clip], tmp_path / "out").videos
    assert (seen.frames, seen.objects) == (11, 11)
    assert seen.ended == "1 damaged part was passed over, the first at 0.16 s"


@pytest.mark.parametrize(
    ("name", "device"),
    [
        ("camera:0", "/dev/video0"),
        ("camera:12", "/dev/video12"),
        ("/dev/video1", "/dev/video1"),
        ("camera:", None),
        ("camera:x", None),
        ("/dev/null", None),
        ("camera:1.mp4", None),
    ],
)
def test_names_of_cameras(name, device):
    assert video.camera(name) == device


class Container:
    """A stand-in for a camera: a frame every 0.1 s, without end; a signal after some."""

    start_time = duration = None

    def __init__(self, signal_at=None):
        self.stream = SimpleNamespace(
            average_rate=None, guessed_rate=Fraction(10), frames=0, type="video"
        )
        self.streams = SimpleNamespace(video=[self.stream], audio=[])
        self.signal_at, self.given = signal_at, 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.closed = True

    def demux(self):
        for index in count():
            if index == self.signal_at:
                os.kill(os.getpid(), signal.SIGINT)
            self.given += 1
            pixels = spot(index, 4)
            frame = SimpleNamespace(
                time=1000 + index / 10, rotation=0, to_ndarray=lambda format, p=pixels: p
            )
            yield SimpleNamespace(
                pts=None, dts=None, stream=self.stream, decode=lambda f=frame: [f]
            )


def open_camera(monkeypatch, container):
    opened = []
    monkeypatch.setattr(
        av, "open", lambda name, *how, **more: opened.append((name, more)) or container
    )
    return opened


def test_a_camera_ends_after_some_seconds(tmp_path, monkeypatch):
    container = Container()
    opened = open_camera(monkeypatch, container)
    result = predict(Spots(), ["camera:0"], tmp_path / "out", saved=("json",), seconds=0.75)
    [seen] = result.videos
    assert opened == [("/dev/video0", {"format": "v4l2"})] and container.closed
    assert (seen.path, seen.frames, seen.ended) == ("camera:0", 8, None)
    lines = (tmp_path / "out" / "camera_0.jsonl").read_text().splitlines()
    assert [json.loads(x)["time"] for x in lines] == pytest.approx([i / 10 for i in range(8)])


def test_a_camera_ends_by_ctrl_c(tmp_path, monkeypatch):
    open_camera(monkeypatch, Container(signal_at=5))
    result = predict(Spots(), ["/dev/video3"], tmp_path / "out", saved=("json", "csv"))
    assert result.videos[0].frames == 5
    assert len((tmp_path / "out" / "video3.jsonl").read_text().splitlines()) == 5


def test_ctrl_c_keeps_what_was_found_in_a_file(clip, tmp_path):
    class Interrupted(Spots):
        def detect(self, images, run, crops):
            if len(self.passes) == 3:
                os.kill(os.getpid(), signal.SIGINT)
            return super().detect(images, run, crops)

    with pytest.raises(KeyboardInterrupt):
        predict(Interrupted(), [clip], tmp_path / "out")
    assert len(frames(tmp_path / "out" / "clip.mp4")[3]) == 4
    assert len((tmp_path / "out" / "clip.jsonl").read_text().splitlines()) == 4


def test_frames_are_decoded_when_they_are_asked_for(tmp_path, monkeypatch):
    """However long a video is, one frame and what FFmpeg looks ahead are in memory."""
    container = Container()
    open_camera(monkeypatch, container)
    with video.opened(Path("camera:0")) as opened:
        shown = video.frames(opened)
        for number in range(3):
            assert next(shown).number == number and container.given == number + 1


def test_what_videos_cannot_have(clip, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=r"--save crops,yolo: of a video, .* json,png,csv only"):
        predict(Spots(), [clip], out, saved=("json", "crops", "yolo"))
    with monkeypatch.context() as patch:
        patch.setattr(processes, "number", lambda: 2)
        with pytest.raises(ValueError, match="several processes share pictures only"):
            predict(Spots(), [clip], out)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ValueError, match=r"package av: pip install 'maskrcnn-triton\[video\]'"):
        predict(Spots(), [clip], out)
    assert files(out) == []


def test_a_video_of_the_name_of_the_lists(tmp_path):
    clip = write_video(tmp_path / "predictions.mp4", MOVING[:2])
    other = write_video(tmp_path / "predictions.avi", MOVING[:2])
    predict(Spots(), [clip, other], tmp_path / "out", saved=("csv",))
    assert files(tmp_path / "out") == ["predictions_2.csv", "predictions_3.csv"]
