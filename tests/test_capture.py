"""engine.capture: compiled and captured steps compute what plain ones do, for all shapes."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from support import narrow, small
from test_train import assert_same_run

from accelerated import anchors
from accelerated.engine import capture, checkpoint, train
from accelerated.engine.capture import WARM_UP, Graphs, count_anchors, draw_priorities
from accelerated.engine.failure import NotFiniteError
from accelerated.engine.run import Run
from accelerated.mask_rcnn import MaskRCNN
from accelerated.structures import Batch, Target
from accelerated.verify.equality import MODEL, assert_close
from reference.config import preset


def run(output, iterations=5, config=None, **options):
    options = {"batch_size": 2, "log_every": 1, "bar": False, "fixed_shapes": True} | options
    return train.train(
        config or small.config(), small.shapes(6), output, iterations=iterations, **options
    )


@pytest.mark.parametrize("name", ["tiny", "detectron2_r50_c4", "paper_vgg16"])
def test_anchors_are_counted_without_a_forward_pass(name, rng):
    config = narrow.config(name) if name in narrow.LAYOUTS else preset(name)
    model, before = MaskRCNN(config), torch.get_rng_state()
    expected = model.rpn(model.features(torch.zeros(1, 3, 96, 160)))[0]
    assert count_anchors(config, 96, 160) == sum(level[0].numel() for level in expected)
    assert torch.equal(torch.get_rng_state(), before)


def test_priorities_drawn_before_the_step_are_those_drawn_in_it(rng):
    config = narrow.config("torchvision_r50_fpn")
    model = narrow.model(config)
    images, targets = narrow.scene(rng, ((96, 128), (80, 100)), (3, 2))
    batch = model.batch(images, [Target(**target) for target in targets])
    expected = model.batch_losses(batch, generator=torch.Generator().manual_seed(3))
    drawn = draw_priorities(model, batch, torch.Generator().manual_seed(3))
    for name, loss in model.batch_losses(batch, drawn).items():
        assert torch.equal(loss, expected[name]), name


def test_a_compiled_run_is_the_same_run(tmp_path):
    """AOT autograd traces forward and backward, and the operators then run as they are.

    Images, augmentation and objects differ from step to step: one graph serves them all.
    """
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    run(tmp_path / "compiled", 4, compile="aot_eager")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    run(tmp_path / "plain", 4)
    assert_same_run(tmp_path / "plain", tmp_path / "compiled")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"graph": True}, "--graph needs a CUDA device, not cpu: leave it out"),
        ({"compile": "eager", "fixed_shapes": False}, "--compile needs .*: add --fixed-shapes"),
    ],
)
def test_what_cannot_be_captured_says_why(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, **options)
    assert not list(tmp_path.iterdir())


def a_batch(value, sides=(4, 8), slots=1):
    n = 2
    return Batch(
        sizes=torch.tensor([sides] * n),
        boxes=torch.full((n, slots, 4), value),
        labels=torch.ones(n, slots, dtype=torch.int64),
        valid=torch.ones(n, slots, dtype=torch.bool),
        masks=torch.zeros(n, slots, sides[0], sides[1] // 8, dtype=torch.uint8),
        original_sizes=[sides] * n,
        image_ids=list(range(n)),
        images=torch.full((n, 3, *sides), value),
    )


def test_every_shape_has_its_own_graph(monkeypatch):
    """On a CPU, with a stand-in that undoes the call while capturing and repeats it in `replay`."""
    state, log = torch.zeros(()), []

    def step(batch, draws):
        log.append("called")
        state.add_(batch.images.mean() * batch.boxes.mean() + draws["priorities"]["rpn"].mean())
        return {"state": state.clone()}

    class StandIn:
        def replay(self):
            _, _, result = captured = graphs.graphs[self.shape]
            result["state"].copy_(step(*self.arguments)["state"])
            assert captured.graph is self
            log[-1] = "replayed"

    @contextmanager
    def capturing(graph, pool, stream, capture_error_mode):
        assert (pool, stream, capture_error_mode) == ("pool", "on cuda", "thread_local")
        before = state.clone()
        yield
        state.copy_(before)
        graph.arguments = given["batch"], given["draws"]
        graph.shape = next(shape for shape in graphs.calls if shape not in graphs.graphs)
        log[-1] = "captured"

    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: f"on {device}")
    monkeypatch.setattr(torch.cuda, "CUDAGraph", StandIn)
    monkeypatch.setattr(torch.cuda, "graph", capturing)
    graphs, expected = Graphs(step, torch.device("cuda")), 0.0
    shapes = [((4, 8), 1), ((8, 8), 1), ((4, 8), 2)]
    for i in range(1, 13):
        value = float(i)
        draws = {"priorities": {"rpn": torch.full((2, 5), value)}}
        given = {"batch": a_batch(value, *shapes[i % 3]), "draws": draws}
        result = graphs(**given)
        expected += value * value + value
        assert result["state"] == state == expected, i
    assert log == ["called"] * 3 * WARM_UP + ["captured", "replayed"] * 3 + ["replayed"] * 3


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_what_a_graph_would_read_and_write_stays_where_it_is(kind, tmp_path, monkeypatch):
    config, places, step = small.config(kind=kind, learning_rate=1e-3), [], Run.step
    config = replace(config, backbone=replace(config.backbone, norm="batch"))

    def watched(self, batch, waited):
        step(self, batch, waited)
        kept = [*self.model.parameters(), *self.model.buffers(), self.failed]
        kept += [group["lr"] for group in self.optimizer.param_groups]
        kept += [tensor for state in self.optimizer.state.values() for tensor in state.values()]
        places.append([tensor.data_ptr() for tensor in kept])

    monkeypatch.setattr(Run, "step", watched)
    run(tmp_path, 4, config)
    assert places[0] == places[1] == places[2] == places[3]


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("amp", [False, True])
def test_a_captured_run_is_the_same_run(tmp_path, monkeypatch, kind, amp):
    """Losses and weights, with evaluations and checkpoints between the steps."""
    replays = []
    replay = torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda g: (replays.append(g), replay(g)))
    config, options = small.config(kind=kind, learning_rate=1e-3), {"device": "cuda", "amp": amp}
    options |= {"evaluation": small.shapes(2), "evaluate_every": 6, "checkpoint_every": 4}
    with torch.backends.cudnn.flags(deterministic=True, benchmark=False):
        run(tmp_path / "plain", 11, config, **options)
        assert not replays
        run(tmp_path / "captured", 11, config, graph=True, **options)
        # The evaluation drops the first graph.
        assert len(replays) == 11 - 2 * WARM_UP and len(set(replays)) == 2
    assert_same_run(tmp_path / "plain", tmp_path / "captured")


@pytest.mark.gpu
def test_a_captured_run_stops_at_the_step_that_failed(tmp_path, monkeypatch):
    """As in test_train: the weights of the failed step remain, and its images are named."""
    draw = capture.draw_priorities

    def poisoned(model, batch, generator):
        poisoned.steps += 1
        if poisoned.steps == 5:
            batch.images.fill_(float("nan"))
        return draw(model, batch, generator)

    poisoned.steps = 0
    monkeypatch.setattr("accelerated.engine.run.draw_priorities", poisoned)
    with pytest.raises(NotFiniteError, match=r"^iteration 4: "):
        run(tmp_path, 9, device="cuda", graph=True, log_every=8, checkpoint_every=4)
    assert checkpoint.read(tmp_path).iteration == 4


def scenes(rng, count=4):
    """Images whose batches have two shapes."""
    shapes = [((96, 128), (80, 100)), ((64, 64), (50, 60))]
    return [narrow.scene(rng, shapes[i % 2], (3, 2))[0] for i in range(count)]


def assert_same_detections(model, run, rng):
    for images in scenes(rng, 8):
        for ours, plain in zip(model.detect(images, run=run), model.detect(images), strict=True):
            assert len(plain.labels) > 0
            for name, value in vars(plain).items():
                assert torch.equal(getattr(ours, name), value), name


def test_a_compiled_detection_is_the_same(rng):
    model = narrow.model(narrow.config("torchvision_r50_fpn"), dtype=torch.float32)
    assert_same_detections(model, capture.detector(model, "eager"), rng)
    with pytest.raises(ValueError, match="--graph needs a CUDA device"):
        capture.detector(model, graph=True)


def test_mixed_precision_detects_the_same_objects(rng):
    """The model's scores lie apart; boxes move by the rounding of bfloat16."""
    model = narrow.model(narrow.config("torchvision_r50_fpn"), dtype=torch.float32)
    run = capture.detector(model, amp=True)
    [images, *_] = scenes(rng)
    batch = model.batch(images)
    plain, mixed = model.batch_detections(batch), run(batch)
    assert not torch.equal(plain.scores, mixed.scores)
    assert_close(mixed.scores, plain.scores, MODEL["bfloat16"])


def test_graphs_are_dropped_before_the_anchors_they_read(monkeypatch):
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: f"on {device}")
    graphs = Graphs(lambda batch, draws: 0, torch.device("cuda"))
    kept = []
    for i in range(1, anchors.SHAPES + 2):
        graphs(a_batch(1.0, (8 * i, 8)), {"priorities": {}})
        kept.append(len(graphs.calls))
    assert kept == [*range(1, anchors.SHAPES + 1), 1]


@pytest.mark.gpu
def test_a_captured_detection_is_the_same(rng, monkeypatch):
    replays, replay = [], torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda g: (replays.append(g), replay(g)))
    config = narrow.config("torchvision_r50_fpn")
    model = narrow.model(config, dtype=torch.float32, backend="triton").to("cuda")
    with torch.backends.cudnn.flags(deterministic=True, benchmark=False, allow_tf32=False):
        assert_same_detections(model, capture.detector(model, graph=True), rng)
    assert len(replays) == 8 - 2 * WARM_UP and len(set(replays)) == 2
    model.backend = "torch"
    with pytest.raises(ValueError, match="--graph needs the backend triton"):
        capture.detector(model, graph=True)
