"""Export: a module or ONNX file becomes an artifact that the service accepts, or nothing at all."""

import json
import logging
import lzma
import re
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from export import Card, ExportError, Figure, Graph, Port, export_artifact
from export import __main__ as command
from export import artifact as exporter
from export.vectors import draw_inputs
from export.weights import WEIGHTS_FILE
from model_zoo import recipe as zoo
from model_zoo.data import SPLITS, Examples, index_hash, split_indices
from model_zoo.scan import Scan
from model_zoo.train import train
from service.core import artifact
from service.core import manifest as reader
from service.core.scoring.calibration import read_calibration
from service.images import levels_to_png

LATENT = Port("latent", "latent", (4,))
CLASS_WEIGHTS = Port("class_weights", "condition", (3,))
IMAGES = Port("images", "data", (1, 8, 8))
SUMS = Port("sums", "log_likelihood", ())

CARD = Card(
    family="toy",
    event={"kind": "image", "shape": [8, 8, 1], "levels": 256, "base_measure": "counting"},
    preprocess={"range": [0.0, 1.0]},
    latent={"shape": [4], "prior": "standard_normal"},
    condition={"kinds": ["class"], "names": ["a", "b", "c"], "prior": [0.5, 0.25, 0.25]},
    operations={"sample": {}, "decode": {}, "interpolate": {}},
)
UNCONDITIONAL = replace(CARD, condition=None)


class Painter(nn.Module):
    """Latent and class to picture; its arguments are not called what the ports are."""

    def __init__(self, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.wide = nn.Linear(4 + 3, 256)
        self.out = nn.Sequential(nn.BatchNorm1d(256), nn.Linear(256, 64), nn.Sigmoid())

    def forward(self, z: Tensor, label: Tensor) -> Tensor:
        return self.out(self.wide(torch.cat([z, label], dim=1))).view(-1, 1, 8, 8)


class Changed(nn.Module):
    """A painter whose latent or picture goes through a function."""

    def __init__(self, latent=lambda z: z, picture=lambda x: x):
        super().__init__()
        self.painter = Painter()
        self.latent, self.picture = latent, picture

    def forward(self, z: Tensor, label: Tensor) -> Tensor:
        return self.picture(self.painter(self.latent(z), label))


def decode_graph(module: nn.Module | Path, outputs: tuple[Port, ...] = (IMAGES,)) -> Graph:
    return Graph("decode", module, (LATENT, CLASS_WEIGHTS), outputs)


def export(
    repository: Path,
    *graphs: Graph,
    card: Card = CARD,
    name: str = "toy",
    state: dict[str, Tensor] | None = None,
) -> Path:
    return export_artifact(
        repository,
        name=name,
        version="1",
        card=card,
        graphs=graphs,
        licence="Apache-2.0",
        state=state,
    )


def run(folder: Path, graph: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(folder / f"{graph}.onnx")
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def check_artifact(folder: Path) -> reader.Manifest:
    """Read an artifact as the service does, and run its test vectors."""
    manifest = reader.read_manifest(folder)
    artifact.verify_files(folder, manifest)
    tolerance = manifest.test_vectors
    for graph, (inputs, outputs) in artifact.read_test_vectors(folder, manifest).items():
        for name, actual in run(folder, graph, inputs).items():
            np.testing.assert_allclose(
                actual, outputs[name], rtol=tolerance.relative, atol=tolerance.absolute
            )
    return manifest


# Anybody's module


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    """The folder of one artifact, made once and only read."""
    return export(tmp_path_factory.mktemp("artifacts"), decode_graph(Painter()))


def test_a_module_of_no_family_becomes_an_artifact_that_the_service_accepts(toy):
    manifest = check_artifact(toy)
    assert toy.parts[-2:] == ("toy", "1")
    assert {path.name for path in toy.iterdir()} == {*manifest.files, "manifest.json"}
    assert re.fullmatch("toy/[0-9a-f]{12}", manifest.latent.space)
    assert manifest.graphs["decode"].input("condition").shape == ("batch", 3)


def test_any_number_of_rows_runs_and_matches_torch(toy):
    module = Painter().eval()
    latent, weights = torch.randn(17, 4), torch.eye(3)[torch.arange(17) % 3]
    actual = run(toy, "decode", {"latent": latent.numpy(), "class_weights": weights.numpy()})
    np.testing.assert_allclose(
        actual["images"], module(latent, weights).detach().numpy(), atol=1e-5
    )


def test_opset_and_version_are_pinned(toy):
    model = onnx.load(toy / "decode.onnx")
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]
    assert model.ir_version == 10


def test_a_graph_does_not_tell_where_it_was_made(toy):
    content = (toy / "decode.onnx").read_bytes()
    for trace in (str(Path(__file__).parent), Path(__file__).name, "Painter", str(toy.parent)):
        assert trace.encode() not in content


def test_what_lies_between_the_ports_of_a_graph_takes_no_room_for_names_and_shapes(toy):
    graph = onnx.load(toy / "decode.onnx").graph
    nodes = [node for node in graph.node if node.op_type != "Cast"]  # weights keep their names
    between = {name for node in nodes for name in node.output} - {graph.output[0].name}
    assert between and all(re.fullmatch(r"%[0-9]+", name) for name in between)
    assert between.isdisjoint(info.name for info in graph.value_info)
    assert not any(node.name for node in nodes)


class Loop(Scan):
    """Goes through the latent with a state; the body of the loop has weights of its own."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.mix = nn.Linear(2, 64)

    def prepare(self, latent: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        return (torch.zeros_like(latent[:, 0]),), (latent.T,)

    def step(
        self, states: tuple[Tensor, ...], items: tuple[Tensor, ...]
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        row = self.mix(torch.stack([*states, *items], dim=1)).sigmoid()
        return (row.mean(dim=1),), (row,)

    def finish(self, rows: Tensor) -> tuple[Tensor, ...]:
        return (rows.mean(dim=0).view(-1, 1, 8, 8),)


def test_nor_does_what_lies_inside_a_loop(tmp_path):
    folder = export(tmp_path, Graph("decode", Loop(), (LATENT,), (IMAGES,)), card=UNCONDITIONAL)
    check_artifact(folder)
    assert b"pkg.torch" not in (folder / "decode.onnx").read_bytes()
    graph = onnx.load(folder / "decode.onnx").graph
    (loop,) = [node for node in graph.node if node.op_type == "Scan"]
    body = loop.attribute[0].g
    assert len(body.initializer) and not len(body.value_info)


def test_the_same_weights_give_the_same_artifact(toy, tmp_path):
    again = export(tmp_path, decode_graph(Painter()))
    for path in toy.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes(), path.name


def test_other_weights_give_another_latent_space(toy, tmp_path):
    other = check_artifact(export(tmp_path, decode_graph(Painter(seed=1))))
    assert other.latent.space != check_artifact(toy).latent.space
    assert other.artifact_digest != check_artifact(toy).artifact_digest


def test_everything_known_of_a_model_reaches_the_manifest(tmp_path):
    figure = Figure("elbo", -90.0, "nats", "one draw", 0.1, {"value": -86.8, "source": "paper"})
    folder = export_artifact(
        tmp_path,
        name="toy",
        version="2.1",
        card=CARD,
        graphs=[decode_graph(Painter())],
        licence="MIT",
        quality=[figure],
        splits={"fit": {"count": 48_000, "sha256": "sha256:" + "0" * 64}},
        provenance={"seed": 1},
    )
    manifest = check_artifact(folder)
    assert (manifest.version, manifest.licence) == ("2.1", "MIT")
    assert manifest.quality[0].published == {"value": -86.8, "source": "paper"}
    assert manifest.splits["fit"].count == 48_000
    assert manifest.provenance["seed"] == 1
    assert manifest.provenance["exporter"]["torch"] == torch.__version__


def test_graphs_that_share_a_layer_store_it_once(toy, tmp_path):
    class Sum(nn.Module):
        def __init__(self, painter: nn.Module):
            super().__init__()
            self.painter = painter

        def forward(self, z: Tensor, label: Tensor) -> Tensor:
            return self.painter(z, label).flatten(1).sum(1)

    painter = Painter()
    both = Graph("total", Sum(painter), (LATENT, CLASS_WEIGHTS), (SUMS,))
    shared = export(tmp_path, decode_graph(painter), both)
    check_artifact(shared)
    assert (shared / WEIGHTS_FILE).read_bytes() == (toy / WEIGHTS_FILE).read_bytes()
    assert (shared / "decode.onnx").stat().st_size < 20_000


def test_weights_that_float16_holds_take_half_the_room_and_stay_the_same(toy, tmp_path):
    painter = Painter()
    with torch.no_grad():
        for weight in painter.parameters():
            weight.copy_(weight.half())
    halved = export(tmp_path, decode_graph(painter))
    check_artifact(halved)
    assert (halved / WEIGHTS_FILE).stat().st_size < 0.6 * (toy / WEIGHTS_FILE).stat().st_size
    stored = onnx.load(halved / "decode.onnx").graph.initializer
    kept = {
        tensor.name.removesuffix("_half"): onnx.numpy_helper.to_array(tensor) for tensor in stored
    }
    folded, plain = kept["module.wide.weight"], kept["module.out.1.weight"]
    assert folded.dtype == np.float32  # times the scale of the batch norm: no round numbers
    assert plain.dtype == np.float16
    np.testing.assert_array_equal(plain, painter.out[1].weight.detach().numpy())


def test_the_state_is_kept_by_its_names_and_graphs_refer_to_it(tmp_path):
    painter = Painter()
    state = painter.state_dict()
    folder = export(tmp_path, decode_graph(painter), state=state)
    check_artifact(folder)
    kept = load_file(folder / WEIGHTS_FILE)
    again = Painter(seed=1)
    again.load_state_dict({name: kept[name] for name in state})  # what training would do with it
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())
    # The batch norm is folded into the first layer; the last one is the state's own.
    folded = {"decode/module.wide.weight", "decode/module.wide.bias"}
    assert kept.keys() - state.keys() == folded


class Mixer(nn.Module):
    """Linear layers of rows of vectors, which ONNX multiplies from the other side."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4 + 3, 80), nn.ReLU(), nn.Linear(80, 64))

    def forward(self, z: Tensor, label: Tensor) -> Tensor:
        both = torch.cat([z, label], dim=1).unsqueeze(1)
        return self.layers(both.repeat(1, 2, 1)).sum(dim=1).view(-1, 1, 8, 8)


@pytest.mark.parametrize("halved", [False, True])
def test_a_matrix_that_a_graph_multiplies_from_the_other_side_is_stored_once(tmp_path, halved):
    torch.manual_seed(0)
    mixer = Mixer()
    with torch.no_grad():
        for weight in mixer.parameters():
            weight.copy_(weight.half() if halved else weight)
    folder = export(tmp_path, decode_graph(mixer), state=mixer.state_dict())
    check_artifact(folder)
    assert load_file(folder / WEIGHTS_FILE).keys() == mixer.state_dict().keys()


class Tails(nn.Module):
    """Functions whose digits are easily lost: far down a sigmoid, and near 0 of e^x - 1."""

    def forward(self, z: Tensor, label: Tensor) -> tuple[Tensor, ...]:
        pictures = torch.zeros_like(z[:, :1, None, None]).repeat(1, 1, 8, 8)
        return pictures, logsigmoid(100 * z[:, 0]), 1e6 * torch.expm1(1e-6 * z[:, 1])


def test_logarithms_of_small_probabilities_keep_their_digits(tmp_path):
    far, near = Port("far", "log_likelihood", ()), Port("near", "log_likelihood", ())
    check_artifact(export(tmp_path, decode_graph(Tails(), (IMAGES, far, near))))


class Upscaler(nn.Module):
    """A batch norm behind each kind of convolution."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Linear(4, 256, bias=False),
            nn.Unflatten(1, (64, 2, 2)),
            nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1, bias=False),  # 2 -> 4
            nn.BatchNorm2d(32),
            nn.ConvTranspose2d(32, 8, 4, stride=2, padding=1),  # 4 -> 8
            nn.BatchNorm2d(8),  # behind a kernel so small that torch's exporter would compute it
            nn.Conv2d(8, 64, 3, padding=1),
            nn.BatchNorm2d(64),
            nn.Conv2d(64, 1, 3, padding=1),
        )
        for norm in (self.body[3], self.body[5], self.body[7]):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, -1, 1)
            nn.init.uniform_(norm.running_mean, -1, 1)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)

    def forward(self, latent: Tensor) -> Tensor:
        return self.body(latent)


def test_a_batch_norm_behind_a_convolution_costs_neither_a_node_nor_another_kernel(tmp_path):
    upscaler = Upscaler()
    card = UNCONDITIONAL
    graph = Graph("decode", upscaler, (LATENT,), (IMAGES,))
    folder = export(tmp_path, graph, card=card, state=upscaler.state_dict())
    check_artifact(folder)
    assert load_file(folder / WEIGHTS_FILE).keys() == upscaler.state_dict().keys()
    operators = [node.op_type for node in onnx.load(folder / "decode.onnx").graph.node]
    assert "BatchNormalization" not in operators
    latent = torch.randn(7, 4)
    actual = run(folder, "decode", {"latent": latent.numpy()})["images"]
    expected = upscaler.eval()(latent).detach().numpy()
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


# Existing ONNX files


def make_generator(path: Path, batch: int | str, opset: int = 17, external: bool = False) -> Path:
    """Write a generator with other port names whose Reshape states the batch size, if it has one.

    ReduceMean takes its axes as an attribute up to opset 17, and as an input from 18 on.
    """
    generator = np.random.default_rng(0)
    kernel = generator.standard_normal((4, 64)).astype(np.float32)
    rows = batch if isinstance(batch, int) else -1
    nodes = [
        helper.make_node("MatMul", ["z", "kernel"], ["images"]),  # the name of a port, inside
        helper.make_node("ReduceMean", ["labels_in"], ["level"], axes=[1], keepdims=1),
        helper.make_node("Add", ["images", "level"], ["moved"]),
        helper.make_node("Reshape", ["moved", "target"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "generator",
        [
            helper.make_tensor_value_info("z", TensorProto.FLOAT, [batch, 4]),
            helper.make_tensor_value_info("labels_in", TensorProto.FLOAT, [batch, 3]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 1, 8, 8])],
        [
            numpy_helper.from_array(kernel, "kernel"),
            numpy_helper.from_array(np.array([rows, 1, 8, 8]), "target"),
        ],
        doc_string=str(path),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save_model(model, path, save_as_external_data=external, size_threshold=512)
    return path


@pytest.mark.parametrize("batch", [1, 4, "N"])
@pytest.mark.parametrize("external", [False, True], ids=["one_file", "external_data"])
def test_an_existing_generator_is_imported(tmp_path, batch, external):
    path = make_generator(tmp_path / "generator.onnx", batch, external=external)
    kernel = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    folder = export(tmp_path / "artifacts", decode_graph(path))
    manifest = check_artifact(folder)
    (inputs, outputs) = artifact.read_test_vectors(folder, manifest)["decode"]
    level = inputs["class_weights"].mean(axis=1, keepdims=True)
    right = (inputs["latent"] @ kernel + level).reshape(-1, 1, 8, 8)
    np.testing.assert_allclose(outputs["images"], right, atol=1e-5)
    assert str(tmp_path).encode() not in (folder / "decode.onnx").read_bytes()


def test_tensors_of_types_that_numpy_does_not_know_are_kept_too(tmp_path):
    kernel = np.random.default_rng(0).standard_normal((4, 256)).astype(np.float32)
    brief = numpy_helper.from_array(kernel.astype(ml_dtypes.bfloat16), "kernel")
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["kernel"], ["wide"], to=TensorProto.FLOAT),
            helper.make_node("MatMul", ["z", "wide"], ["y"]),
        ],
        "generator",
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 256])],
        [brief],
    )
    path = tmp_path / "generator.onnx"
    opsets = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    projected = Graph("decode", path, (LATENT,), (Port("y", "codes", (256,)),))
    folder = export(tmp_path / "artifacts", projected)
    latent = np.eye(4, dtype=np.float32)
    rounded = kernel.astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(run(folder, "decode", {"latent": latent})["y"], rounded)
    assert load_file(folder / WEIGHTS_FILE)["decode/kernel"].numel() == kernel.size * 2  # bytes


def test_a_file_with_a_batch_size_deep_inside_is_refused(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("Expand", ["z", "target"], ["y"])],
        "generator",
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 4])],
        [numpy_helper.from_array(np.array([4, 4]), "target")],
    )
    path = tmp_path / "generator.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), path)
    expanded = Graph("decode", path, (LATENT,), (Port("out", "data", (4,)),))
    with pytest.raises(ExportError, match=r"graph 'decode'.*batch"):
        export(tmp_path / "artifacts", expanded)


def test_a_file_that_cannot_be_converted_is_refused(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("RMSNormalization", ["z", "scale"], ["y"])],  # new in opset 23
        "generator",
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(np.ones(4, np.float32), "scale")],
    )
    path = tmp_path / "generator.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    onnx.save(model, path)
    normalised = Graph("decode", path, (LATENT,), (Port("out", "data", (4,)),))
    with pytest.raises(ExportError, match=r"generator.onnx has opset 23 .* export it again"):
        export(tmp_path / "artifacts", normalised)


def test_a_file_with_other_inputs_than_the_ports_is_refused(tmp_path):
    path = make_generator(tmp_path / "generator.onnx", "N")
    with pytest.raises(ExportError, match=r"graph 'decode'.*has 2 inputs, not"):
        export(tmp_path / "artifacts", Graph("decode", path, (LATENT,), (IMAGES,)))


def test_a_file_that_is_no_onnx_is_refused(tmp_path):
    path = tmp_path / "generator.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(ExportError, match=r"graph 'decode'.*can't load generator.onnx"):
        export(tmp_path / "artifacts", decode_graph(path))


# Refusals: what is not pure, not as stated, or not the same is never written


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        pytest.param(
            decode_graph(Changed(latent=lambda z: z + torch.randn_like(z))),
            "graph 'decode'.*own noise.*RandomNormalLike",
            id="draws_normal_noise",
        ),
        pytest.param(
            decode_graph(Changed(latent=lambda z: z + torch.rand(len(z), 1))),
            "graph 'decode'.*own noise.*RandomUniform",
            id="draws_uniform_noise",
        ),
        pytest.param(
            decode_graph(Changed(latent=lambda z: z - z.mean(0))),
            "graph 'decode', output 'images'.*depends on the other rows",
            id="mixes_rows",
        ),
        pytest.param(
            decode_graph(Painter(), (Port("images", "data", (1, 7, 7)),)),
            r"graph 'decode', output 'images'.*\[5, 1, 8, 8\].*not.*\[5, 1, 7, 7\]",
            id="wrong_output_shape",
        ),
        pytest.param(
            Graph("decode", Painter(), (Port("latent", "latent", (9,)), CLASS_WEIGHTS), (IMAGES,)),
            r"graph 'decode'.*refuses the inputs 'latent' \[5, 9\]",
            id="wrong_input_shape",
        ),
        pytest.param(
            Graph("decode", Painter(), (LATENT, Port("weights", "condition", (4,))), (IMAGES,)),
            r"graph 'decode', input 'weights'.*\[4\].*\[3\]",
            id="shape_not_of_the_card",
        ),
        pytest.param(
            Graph("decode", Painter(), (LATENT, Port("codes", "codes", (3,))), (IMAGES,)),
            "graph 'decode', input 'codes'.*role 'codes'",
            id="unknown_role",
        ),
        pytest.param(
            decode_graph(Painter(), (Port("images", "data", (1, 8, 8), "float64"),)),
            "graph 'decode', output 'images'.*float32.*float64",
            id="wrong_dtype",
        ),
        pytest.param(
            decode_graph(Painter(), (IMAGES, SUMS)),
            "returns 1 outputs, not 2",
            id="too_few_outputs",
        ),
        pytest.param(
            decode_graph(Painter(), (Port("latent", "data", (1, 8, 8)),)),
            "two ports share a name: .*latent",
            id="repeated_name",
        ),
        pytest.param(
            decode_graph(Changed(picture=lambda x: x / 0)),
            r"output 'images': is not finite",
            id="not_finite",
        ),
        pytest.param(
            decode_graph(Changed(picture=lambda x: x + torch.compiler.is_exporting())),
            r"graph 'decode', output 'images' differs from the original at batch 1: by 1",
            id="exports_something_else",
        ),
        pytest.param(
            decode_graph(Changed(latent=lambda z: z + torch.arange(5).view(5, 1))),
            r"graph 'decode', port 'latent': the batch axis is fixed at 5",
            id="fixes_the_batch",
        ),
        pytest.param(
            decode_graph(Changed(picture=lambda x: torch.lgamma(x))),
            "graph 'decode': torch can't export it",
            id="no_such_operator",
        ),
        pytest.param(
            Graph("draw", Painter(), (LATENT, CLASS_WEIGHTS), (IMAGES,)),
            "no graph is called 'decode'",
            id="latent_without_decode",
        ),
    ],
)
def test_a_wrong_graph_is_refused_and_nothing_is_written(tmp_path, graph, message):
    with pytest.raises(ExportError, match=message):
        export(tmp_path, graph)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["Toy", "toy_1", "../toy", ""])
def test_a_name_that_could_not_be_asked_for_is_refused(tmp_path, name):
    with pytest.raises(ExportError, match="name"):
        export(tmp_path, decode_graph(Painter()), name=name)
    assert list(tmp_path.iterdir()) == []


def test_a_good_version_survives_a_failed_export(toy, tmp_path):
    shutil.copytree(toy, tmp_path / "toy" / "1")
    with pytest.raises(ExportError):
        export(tmp_path, decode_graph(Changed(latent=lambda z: z - z.mean(0))))
    assert check_artifact(tmp_path / "toy" / "1") == check_artifact(toy)


def test_a_new_export_replaces_the_version_and_leaves_nothing_behind(toy, tmp_path):
    shutil.copytree(toy, tmp_path / "toy" / "1")
    after = check_artifact(export(tmp_path, decode_graph(Painter(seed=1))))
    assert after.artifact_digest != check_artifact(toy).artifact_digest
    folders = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_dir()]
    assert sorted(folders) == [Path("toy"), Path("toy/1")]


# Test inputs


def test_inputs_are_like_those_that_will_be_served():
    card = Card(
        family="toy",
        event=CARD.event,
        preprocess={"range": [-1.0, 1.0], "padding": [0, 2, 0, 0]},
        condition=CARD.condition,
        operations={},
    )
    noise = Port("noise", "noise", (1000,), "float32", "uniform", "dequantisation")
    data = Port("data", "data", (1, 10, 8))
    inputs = draw_inputs(Graph("any", Painter(), (data, noise, CLASS_WEIGHTS), ()), card)
    levels = (inputs["data"] + 1) / 2 * 255
    np.testing.assert_allclose(levels, np.rint(levels), atol=1e-4)
    assert levels.max() > 100 and (levels[:, :, 8:] == 0).all()
    assert 0 <= inputs["noise"].min() < 0.1 and 0.9 < inputs["noise"].max() < 1
    np.testing.assert_allclose(inputs["class_weights"].sum(axis=1), 1, atol=1e-6)
    assert [set(row) == {0, 1} for row in inputs["class_weights"].tolist()] == [True] * 4 + [False]


def test_a_binarised_model_is_shown_two_levels():
    binarisation = {"levels": 2, "rules": ["threshold"], "required_by": ["likelihood"]}
    card = Card(
        family="toy",
        event=CARD.event,
        preprocess={"range": [0.0, 1.0], "layout": "NHWC", "binarisation": binarisation},
        operations={},
    )
    data = Port("data", "data", (8, 8, 1))
    inputs = draw_inputs(Graph("any", Painter(), (data,), ()), card)
    assert set(np.unique(inputs["data"])) == {0.0, 1.0}


# The bridge


@given(
    st.dictionaries(
        st.text(), st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
    )
)
def test_exporter_and_service_agree_on_the_digest(manifest):
    assert exporter.artifact_digest(manifest) == reader.artifact_digest(manifest)
    assert exporter.artifact_digest(manifest | {"artifact_digest": "any"}) == (
        exporter.artifact_digest(manifest | {"artifact_digest": "other"})
    )


def test_the_manifest_has_the_keys_of_the_contract_and_no_others(toy):
    content = json.loads((toy / "manifest.json").read_text(encoding="utf-8"))
    assert set(content) == set(reader.Manifest.model_fields) - {"codes"}, "a toy of latents"


# The command


@pytest.fixture
def run_command(monkeypatch, tmp_path):
    monkeypatch.setattr(logging.getLogger("export"), "handlers", [])

    def run_with(*arguments: str) -> None:
        monkeypatch.setattr("sys.argv", ["export", "--repository", str(tmp_path), *arguments])
        command.main()

    return run_with


def test_the_command_exports_a_trained_model(run_command, tmp_path, capsys):
    run_command("mnist-dcgan")
    manifest = check_artifact(tmp_path / "mnist-dcgan" / "1")
    assert {figure.name for figure in manifest.quality} >= {"recognised_as_asked"}
    assert "mnist-dcgan, version 1" in capsys.readouterr().out
    # It was read from the bundled artifact, which it could replace.
    exported, bundled = (
        folder / "mnist-dcgan" / "1" / WEIGHTS_FILE for folder in (tmp_path, zoo.ARTIFACTS)
    )
    assert exported.read_bytes() == bundled.read_bytes()


def test_the_command_says_why_a_model_is_skipped(run_command, tmp_path, capsys):
    run_command("mnist-classifier")
    assert "skipped, it generates nothing" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


TINY_RECIPE = """
family = "autoregressive.gated_pixelcnn"
dataset = "none"
seed = 1
epochs = 1
batch_size = 4
precision = "float32"
average_decay = 0.0
keep = "last"

[model]
image_shape = [1, 6, 6]
classes = 3
layers = {layers}
channels = 4
head_width = 4
levels = 5
reach = {reach}

[optimisers.pixelcnn]
learning_rate = 1e-3
final_learning_rate = 1e-4
warmup_steps = 1
betas = [0.9, 0.999]
gradient_norm = 1.0
"""


@pytest.fixture
def trained(monkeypatch, tmp_path):
    """A model called tiny and its background as if trained: recipes, weights and records."""
    recipes, weights = tmp_path / "recipes", tmp_path / "weights"
    recipes.mkdir()
    monkeypatch.setattr(zoo, "RECIPES", recipes)
    monkeypatch.setattr(command, "WEIGHTS", weights)
    for name, layers, reach in (("tiny", 3, 3), ("tiny-background", 1, 2)):
        text = TINY_RECIPE.format(layers=layers, reach=reach)
        (recipes / f"{name}.toml").write_text(text)
        images = torch.randint(256, (12, 1, 6, 6), dtype=torch.uint8)
        examples = Examples(images, torch.arange(12) % 3, torch.arange(12))
        splits = dict.fromkeys(SPLITS, examples)
        train(zoo.read_recipe(name), splits, runs=tmp_path / "runs", weights=weights)
    return weights


def test_a_background_becomes_a_graph_of_the_model_and_no_model_of_its_own(
    run_command, trained, tmp_path, capsys
):
    run_command("--repository", str(tmp_path / "models"))
    assert "tiny-background: skipped, it is served inside tiny" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["tiny"]
    manifest = check_artifact(tmp_path / "models" / "tiny" / "1")
    background = manifest.graphs["background_log_likelihood"]
    assert background.inputs == manifest.graphs["log_likelihood"].inputs
    described = manifest.provenance["background"]
    assert described["recipe"] == "tiny-background"
    assert [figure["name"] for figure in described["figures"]] == [
        "bits_per_dim", "bits_per_dim_given_class",
    ]  # fmt: skip
    assert len(manifest.quality) == 2, "the figures of the background are not the model's"

    inputs = {
        "data": np.random.default_rng(0).integers(0, 5, (4, 1, 6, 6)).astype(np.float32),
        "class_weights": np.eye(4, 3, dtype=np.float32),  # the last has no class
    }
    path = tmp_path / "models" / "tiny" / "1" / background.file
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, inputs)
    model = zoo.load_trained("tiny-background", trained)
    levels, class_weights = (torch.from_numpy(values) for values in inputs.values())
    with torch.no_grad():
        expected = model.log_probability(levels.squeeze(1).long(), class_weights)
    np.testing.assert_allclose(scores, expected.numpy(), rtol=1e-4)


def test_a_model_whose_background_has_no_weights_goes_without(run_command, trained, tmp_path):
    (trained / "tiny-background.safetensors").unlink()
    run_command("--repository", str(tmp_path / "models"), "tiny")
    manifest = check_artifact(tmp_path / "models" / "tiny" / "1")
    assert "background_log_likelihood" not in manifest.graphs
    assert "background" not in manifest.provenance


def test_weights_move_into_the_bundled_artifact_and_are_read_from_it(
    run_command, trained, tmp_path, monkeypatch
):
    artifacts = tmp_path / "artifacts"
    monkeypatch.setattr(command, "ARTIFACTS", artifacts)
    monkeypatch.setattr(zoo, "ARTIFACTS", artifacts)
    names = ["tiny", "tiny-background"]
    before = {name: zoo.load_trained(name, trained).state_dict() for name in names}

    run_command("--repository", str(artifacts))
    manifest = check_artifact(artifacts / "tiny" / "1")
    assert not list(trained.glob("*.safetensors"))
    for name in names:
        after = zoo.load_trained(name, trained).state_dict()
        assert after.keys() == before[name].keys()
        assert all(torch.equal(after[key], before[name][key]) for key in after)

    run_command("--repository", str(artifacts))
    assert check_artifact(artifacts / "tiny" / "1").artifact_digest == manifest.artifact_digest


def test_weights_that_were_trained_anew_go_before_those_of_the_artifact(
    run_command, trained, tmp_path, monkeypatch
):
    monkeypatch.setattr(zoo, "ARTIFACTS", tmp_path / "artifacts")
    run_command("--repository", str(tmp_path / "artifacts"), "tiny")
    state = load_file(trained / "tiny.safetensors")
    save_file({key: tensor + 1 for key, tensor in state.items()}, trained / "tiny.safetensors")
    loaded = zoo.load_trained("tiny", trained).state_dict()
    assert all(torch.equal(loaded[key], (state[key] + 1).float()) for key in state)


def test_a_background_of_other_images_than_the_model_is_refused(run_command, trained, tmp_path):
    record = json.loads((trained / "tiny-background.json").read_text())
    record["splits"]["fit"]["count"] += 1
    (trained / "tiny-background.json").write_text(json.dumps(record))
    with pytest.raises(SystemExit, match="tiny-background was trained on other splits than tiny"):
        run_command("--repository", str(tmp_path / "models"), "tiny")


def test_a_model_with_likelihoods_is_calibrated_with_images_of_its_data_set(
    run_command, trained, tmp_path, monkeypatch, capsys
):
    write_data_set(tmp_path / "data" / "specks", count=1200)
    monkeypatch.setenv("GENSERVE_DATA_DIR", str(tmp_path / "data"))
    recipe = tmp_path / "recipes" / "tiny.toml"
    recipe.write_text(recipe.read_text().replace('"none"', '"specks"'))
    folder = tmp_path / "models" / "tiny" / "1"
    outdated = folder.parent / "calibrations" / "outdated.json.xz"
    outdated.parent.mkdir(parents=True)
    outdated.write_bytes(lzma.compress(b'{"artifact_digest": "sha256:0"}'))

    run_command("--repository", str(tmp_path / "models"), "tiny")
    (path,) = (folder.parent / "calibrations").iterdir()
    manifest = check_artifact(folder)
    calibration = read_calibration(path, manifest.artifact_digest)
    assert (calibration.data.score_fit.count, calibration.data.calibrate.count) == (100, 100)
    assert f"sha256:{index_hash(split_indices(1200)['calibrate'])}" in calibration.data.source
    assert "likelihood_ratio" in calibration.scores

    before = path.read_bytes()
    run_command("--repository", str(tmp_path / "models"), "tiny")
    (path,) = (folder.parent / "calibrations").iterdir()
    assert path.read_bytes() == before


def write_data_set(folder: Path, count: int) -> None:
    """Write grey images of noise, each of its own brightness, as `train` and `test` zips."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for part, size in (("train", count), ("test", 1)):
        with zipfile.ZipFile(folder / f"{part}.zip", "w") as archive:
            for index in range(size):
                pixels = rng.integers(0, rng.integers(50, 256), (6, 6, 1)).astype(np.uint8)
                archive.writestr(f"speck/{index}.png", levels_to_png(pixels, 256))


def test_a_model_whose_data_set_is_not_there_is_not_calibrated(
    run_command, trained, tmp_path, capsys
):
    run_command("--repository", str(tmp_path / "models"), "tiny")
    assert "not calibrated: data set 'none' was not found" in capsys.readouterr().out
    assert not (tmp_path / "models" / "tiny" / "calibrations").exists()


def test_a_recipe_of_any_path_is_exported_by_its_name(run_command, trained, tmp_path):
    (tmp_path / "recipes" / "tiny.toml").rename(tmp_path / "tiny.toml")
    run_command("--repository", str(tmp_path / "models"), str(tmp_path / "tiny.toml"))
    assert check_artifact(tmp_path / "models" / "tiny" / "1").name == "tiny"


def test_the_command_refuses_an_unknown_model(run_command):
    with pytest.raises(SystemExit, match="no recipe 'mnist-nothing'"):
        run_command("mnist-nothing")
