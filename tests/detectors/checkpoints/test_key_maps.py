"""Published state dicts, rebuilt by name and shape from the authors' module trees, fill the models that leandetr builds."""

import argparse
import json
import re
from collections.abc import Iterator
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
import torchvision
import transformers as hf
from torch import nn

from leandetr.detectors.build import build
from leandetr.detectors.checkpoints.key_maps import fill
from leandetr.detectors.checkpoints.load import load
from leandetr.detectors.checkpoints.state_dict import read_checkpoint
from leandetr.detectors.models.adamixer import AdaMixerConfig, AdaMixerForObjectDetection
from leandetr.detectors.models.smca_detr import SmcaDetrConfig, SmcaDetrForObjectDetection
from leandetr.detectors.spec import NewDetector
from leandetr.errors import UserError
from leandetr.structures import ClassMap

Shapes = Iterator[tuple[str, tuple[int, ...]]]


def linear(name: str, outputs: int, inputs: int) -> Shapes:
    yield f"{name}.weight", (outputs, inputs)
    yield f"{name}.bias", (outputs,)


def norm(name: str, width: int) -> Shapes:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def batch_norm(name: str, width: int) -> Shapes:
    for kind in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.{kind}", (width,)


def attention(name: str, width: int) -> Shapes:
    yield f"{name}.in_proj_weight", (3 * width, width)
    yield f"{name}.in_proj_bias", (3 * width,)
    yield from linear(f"{name}.out_proj", width, width)


def mlp(name: str, *widths: int) -> Shapes:
    for number, (inputs, outputs) in enumerate(pairwise(widths)):
        yield from linear(f"{name}.layers.{number}", outputs, inputs)


def resnet(name: str, depth: int, counters: bool = True) -> Shapes:
    """torchvision's names, which are also those of the papers' backbones; DETR's frozen norms count no batches."""
    with torch.device("meta"):
        layers = getattr(torchvision.models, f"resnet{depth}")().state_dict()
    weights = {key: value for key, value in layers.items() if not key.startswith("fc.") and (counters or value.dim())}
    yield from ((f"{name}.{key}", tuple(value.shape)) for key, value in weights.items())


def detr(depth: int, width: int, ffn: int, layers: int, queries: int, columns: int, smca: bool = False) -> Shapes:
    yield from resnet("backbone.0.body", depth, counters=False)
    yield "input_proj.weight", (width, 2048 if depth >= 50 else 512, 1, 1)
    yield "input_proj.bias", (width,)
    yield "query_embed.weight", (queries, width)
    yield from linear("class_embed", columns, width)
    yield from mlp("bbox_embed", width, width, width, 4)
    yield from norm("transformer.decoder.norm", width)
    for side, attentions, norms in (("encoder", ["self_attn"], 2), ("decoder", ["self_attn", "multihead_attn"], 3)):
        for number in range(layers):
            layer = f"transformer.{side}.layers.{number}"
            for name in attentions:
                yield from attention(f"{layer}.{name}", width)
            yield from linear(f"{layer}.linear1", ffn, width)
            yield from linear(f"{layer}.linear2", width, ffn)
            for index in range(1, norms + 1):
                yield from norm(f"{layer}.norm{index}", width)
            if smca and side == "decoder":
                yield from norm(f"{layer}.norm4", width)
                yield from linear(f"{layer}.point2", 16, width)
                yield from linear(f"{layer}.point3", 16, width)
                if number == 0:
                    yield from mlp(f"{layer}.point1", width, width, width, 2)


def adamixer(depth: int, width: int, ffn: int, stages: int, queries: int, classes: int, sizes: tuple[int, int, int]) -> Shapes:
    groups, points, mixed = sizes
    channels = width // groups
    yield from resnet("backbone", depth)
    for number, inputs in enumerate((256, 512, 1024, 2048) if depth >= 50 else (64, 128, 256, 512)):
        yield f"neck.lateral_convs.{number}.conv.weight", (width, inputs, 1, 1)
        yield f"neck.lateral_convs.{number}.conv.bias", (width,)
    yield from norm("neck.gn_out", width)
    yield "rpn_head.init_proposal_bboxes.weight", (queries, 4)
    yield "rpn_head.init_content_features.weight", (queries, width)
    for number in range(stages):
        stage = f"roi_head.bbox_head.{number}"
        yield f"{stage}.iof_tau", (8,)
        yield from attention(f"{stage}.attention.attn", width)
        yield from linear(f"{stage}.sampling_n_mixing.sampling_offset_generator.0", groups * points * 3, width)
        generated = groups * (channels**2 + mixed * points)
        yield from linear(f"{stage}.sampling_n_mixing.adaptive_mixing.parameter_generator.0", generated, width)
        yield from linear(f"{stage}.sampling_n_mixing.adaptive_mixing.out_proj", width, width * mixed)
        yield from linear(f"{stage}.ffn.layers.0.0", ffn, width)
        yield from linear(f"{stage}.ffn.layers.1", width, ffn)
        for name in ("attention_norm", "sampling_n_mixing.norm", "ffn_norm", "cls_fcs.1", "reg_fcs.1"):
            yield from norm(f"{stage}.{name}", width)
        for name, outputs in (("cls_fcs.0", width), ("reg_fcs.0", width), ("fc_cls", classes), ("fc_reg", 4)):
            yield from linear(f"{stage}.{name}", outputs, width)


def conv_norm(name: str, outputs: int, inputs: int, kernel: int) -> Shapes:
    yield f"{name}.conv.weight", (outputs, inputs, kernel, kernel)
    yield from batch_norm(f"{name}.norm", outputs)


def resnet_vd(blocks: list[int], bottleneck: bool) -> Shapes:
    """RT-DETR's backbone: three convolutions in the stem, average pooling before the shortcuts of halving stages."""
    for number, (outputs, inputs) in enumerate(((32, 3), (32, 32), (64, 32)), start=1):
        yield from conv_norm(f"backbone.conv1.conv1_{number}", outputs, inputs, 3)
    inputs = 64
    for stage, count in enumerate(blocks):
        width = 64 * 2**stage
        outputs = width * (4 if bottleneck else 1)
        for number in range(count):
            block = f"backbone.res_layers.{stage}.blocks.{number}"
            kernels = {"branch2a": 1, "branch2b": 3, "branch2c": 1} if bottleneck else {"branch2a": 3, "branch2b": 3}
            before = inputs
            for branch, kernel in kernels.items():
                after = outputs if branch == "branch2c" else width
                yield from conv_norm(f"{block}.{branch}", after, before, kernel)
                before = after
            if number == 0:
                yield from conv_norm(f"{block}.short.conv" if stage else f"{block}.short", outputs, inputs, 1)
            inputs = outputs


def csp(name: str, width: int, hidden: int) -> Shapes:
    yield from conv_norm(f"{name}.conv1", hidden, 2 * width, 1)
    yield from conv_norm(f"{name}.conv2", hidden, 2 * width, 1)
    for number in range(3):
        yield from conv_norm(f"{name}.bottlenecks.{number}.conv1", hidden, hidden, 3)
        yield from conv_norm(f"{name}.bottlenecks.{number}.conv2", hidden, hidden, 1)
    if hidden != width:
        yield from conv_norm(f"{name}.conv3", width, hidden, 1)


def rt_detr(blocks: list[int], bottleneck: bool, layers: int, classes: int, hidden: int, version: int) -> Shapes:
    yield from resnet_vd(blocks, bottleneck)
    conv, bn, proj, ln = ("0", "1", "0", "1") if version == 1 else ("conv", "norm", "proj", "norm")
    for number, width in enumerate((512, 1024, 2048) if bottleneck else (128, 256, 512)):
        yield f"encoder.input_proj.{number}.{conv}.weight", (256, width, 1, 1)
        yield from batch_norm(f"encoder.input_proj.{number}.{bn}", 256)
        yield f"encoder.input_proj.{number}.{bn}.num_batches_tracked", ()
        yield f"decoder.input_proj.{number}.conv.weight", (256, 256, 1, 1)
        yield from batch_norm(f"decoder.input_proj.{number}.norm", 256)
    for number in range(2):
        yield from conv_norm(f"encoder.lateral_convs.{number}", 256, 256, 1)
        yield from conv_norm(f"encoder.downsample_convs.{number}", 256, 256, 3)
        yield from csp(f"encoder.fpn_blocks.{number}", 256, hidden)
        yield from csp(f"encoder.pan_blocks.{number}", 256, hidden)
    stacks = [("encoder.encoder.0.layers.0", 2)] + [(f"decoder.decoder.layers.{number}", 3) for number in range(layers)]
    for layer, norms in stacks:
        yield from attention(f"{layer}.self_attn", 256)
        yield from linear(f"{layer}.linear1", 1024, 256)
        yield from linear(f"{layer}.linear2", 256, 1024)
        for index in range(1, norms + 1):
            yield from norm(f"{layer}.norm{index}", 256)
        if norms == 3:
            parts = {"sampling_offsets": 192, "attention_weights": 96, "value_proj": 256, "output_proj": 256}
            for name, outputs in parts.items():
                yield from linear(f"{layer}.cross_attn.{name}", outputs, 256)
            if version == 2:
                yield f"{layer}.cross_attn.num_points_scale", (12,)
    yield "decoder.denoising_class_embed.weight", (classes + 1, 256)
    yield from mlp("decoder.query_pos_head", 4, 512, 256)
    yield from linear(f"decoder.enc_output.{proj}", 256, 256)
    yield from norm(f"decoder.enc_output.{ln}", 256)
    yield from linear("decoder.enc_score_head", classes, 256)
    yield from mlp("decoder.enc_bbox_head", 256, 256, 256, 4)
    for number in range(layers):
        yield from linear(f"decoder.dec_score_head.{number}", classes, 256)
        yield from mlp(f"decoder.dec_bbox_head.{number}", 256, 256, 256, 4)
    if version == 2:
        yield "decoder.anchors", (1, 8400, 4)
        yield "decoder.valid_mask", (1, 8400, 1)


def rt_detr_model(version: int, bottleneck: bool, blocks: list[int], layers: int, expansion: float) -> hf.PreTrainedModel:
    model, config = {
        1: (hf.RTDetrForObjectDetection, hf.RTDetrConfig),
        2: (hf.RTDetrV2ForObjectDetection, hf.RTDetrV2Config),
    }[version]
    kind, widths = ("bottleneck", [256, 512, 1024, 2048]) if bottleneck else ("basic", [64, 128, 256, 512])
    stages = ["stage2", "stage3", "stage4"]
    backbone = hf.RTDetrResNetConfig(layer_type=kind, hidden_sizes=widths, depths=blocks, out_features=stages)
    sizes = {"encoder_in_channels": widths[1:], "num_labels": 80, "decoder_layers": layers, "hidden_expansion": expansion}
    return model(config(backbone_config=backbone, **sizes))


def small_detr() -> tuple[hf.PreTrainedModel, dict[str, tuple[int, ...]]]:
    backbone = hf.TimmBackboneConfig(backbone="resnet18", out_indices=[4])
    sizes = {"d_model": 32, "num_queries": 7, "num_labels": 4, "encoder_layers": 2, "decoder_layers": 2}
    config = hf.DetrConfig(backbone_config=backbone, encoder_ffn_dim=48, decoder_ffn_dim=48, **sizes)
    return hf.DetrForObjectDetection(config), dict(detr(18, 32, 48, layers=2, queries=7, columns=5))


def small_smca() -> tuple[hf.PreTrainedModel, dict[str, tuple[int, ...]]]:
    sizes = {"d_model": 32, "num_queries": 7, "num_labels": 5, "encoder_layers": 2, "decoder_layers": 2}
    config = SmcaDetrConfig(backbone="resnet18", encoder_ffn_dim=48, decoder_ffn_dim=48, **sizes)
    return SmcaDetrForObjectDetection(config), dict(detr(18, 32, 48, layers=2, queries=7, columns=5, smca=True))


def small_adamixer() -> tuple[hf.PreTrainedModel, dict[str, tuple[int, ...]]]:
    sizes = {"d_model": 32, "num_queries": 7, "num_labels": 5, "decoder_layers": 2, "decoder_ffn_dim": 48}
    config = AdaMixerConfig(backbone="resnet18", sampling_groups=2, sampling_points=6, mixing_points=10, **sizes)
    return AdaMixerForObjectDetection(config), dict(adamixer(18, 32, 48, stages=2, queries=7, classes=5, sizes=(2, 6, 10)))


def save(path, shapes: dict[str, tuple[int, ...]], wrap=lambda state: state) -> dict[str, torch.Tensor]:
    """Write random tensors of these shapes as the authors do, and return them."""
    generator = torch.Generator().manual_seed(0)
    state = {
        name: torch.tensor(3) if name.endswith("num_batches_tracked") else torch.randn(shape, generator=generator)
        for name, shape in shapes.items()
    }
    torch.save(wrap(state), path)
    return state


def fill_from(model, path) -> None:
    fill(model, read_checkpoint(path), str(path))


def as_trained(state: dict) -> dict:
    """What DETR's training script writes."""
    return {"model": state, "optimizer": {"param_groups": []}, "epoch": 499, "args": argparse.Namespace(lr=1e-4)}


def test_detr_r50_names_load_with_fused_projections_split(tmp_path):
    model, shapes = small_detr()
    state = save(tmp_path / "detr.pth", shapes, as_trained)
    fill_from(model, tmp_path / "detr.pth")
    decoder, layer = model.model.decoder, "transformer.decoder.layers.1"
    for name, parameter in {
        "backbone.0.body.layer3.1.bn2.running_var": model.model.backbone.model.layer3[1].bn2.running_var,
        "query_embed.weight": model.model.query_position_embeddings.weight,
        "transformer.decoder.norm.weight": decoder.layernorm.weight,
        "transformer.encoder.layers.0.norm2.bias": model.model.encoder.layers[0].final_layer_norm.bias,
        f"{layer}.norm1.weight": decoder.layers[1].self_attn_layer_norm.weight,
        f"{layer}.norm2.weight": decoder.layers[1].encoder_attn_layer_norm.weight,
        f"{layer}.norm3.weight": decoder.layers[1].final_layer_norm.weight,
        f"{layer}.linear1.weight": decoder.layers[1].mlp.fc1.weight,
        "class_embed.bias": model.class_labels_classifier.bias,
        "bbox_embed.layers.2.weight": model.bbox_predictor.layers[2].weight,
    }.items():
        assert torch.equal(state[name], parameter), name
    published = nn.MultiheadAttention(32, 8, batch_first=True)
    prefix = f"{layer}.multihead_attn."
    published.load_state_dict({name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)})
    queries, memory = torch.randn(1, 3, 32), torch.randn(1, 5, 32)
    found, _ = decoder.layers[1].encoder_attn.eval()(queries, memory)
    torch.testing.assert_close(found, published(queries, memory, memory)[0], atol=1e-3, rtol=1e-3)


def test_smca_names_load_with_its_centre_offset_and_scale(tmp_path):
    model, shapes = small_smca()
    state = save(tmp_path / "smca.pth", shapes, as_trained)
    fill_from(model, tmp_path / "smca.pth")
    decoder, layer = model.model.decoder, "transformer.decoder.layers"
    for name, parameter in {
        f"{layer}.0.point1.layers.2.weight": decoder.reference_predictor.layers[2].weight,
        f"{layer}.1.point2.weight": decoder.layers[1].offset.weight,
        f"{layer}.1.point3.bias": decoder.layers[1].scale.bias,
        f"{layer}.1.norm4.weight": decoder.layers[1].query_norm.weight,
        f"{layer}.1.norm3.weight": decoder.layers[1].final_layer_norm.weight,
    }.items():
        assert torch.equal(state[name], parameter), name


def test_adamixer_loads_from_mmdetections_layout(tmp_path):
    model, shapes = small_adamixer()
    state = save(tmp_path / "adamixer.pth", shapes, lambda state: {"meta": {"epoch": 12}, "state_dict": state})
    fill_from(model, tmp_path / "adamixer.pth")
    layer, stage = model.model.decoder.layers[1], "roi_head.bbox_head.1"
    for name, parameter in {
        "backbone.layer1.0.conv1.weight": model.model.backbone.model.layer1[0].conv1.weight,
        "neck.lateral_convs.3.conv.weight": model.model.input_projections[3].weight,
        "neck.gn_out.weight": model.model.level_norm.weight,
        "rpn_head.init_content_features.weight": model.model.query_content.weight,
        f"{stage}.iof_tau": layer.iof_temperature,
        f"{stage}.attention.attn.out_proj.weight": layer.self_attn.o_proj.weight,
        f"{stage}.attention_norm.bias": layer.self_attn_layer_norm.bias,
        f"{stage}.sampling_n_mixing.sampling_offset_generator.0.bias": layer.sampling.offsets.bias,
        f"{stage}.sampling_n_mixing.adaptive_mixing.parameter_generator.0.weight": layer.mixing.parameters_of_query.weight,
        f"{stage}.sampling_n_mixing.adaptive_mixing.out_proj.weight": layer.mixing.output.weight,
        f"{stage}.sampling_n_mixing.norm.weight": layer.mixing_layer_norm.weight,
        f"{stage}.ffn.layers.0.0.weight": layer.fc1.weight,
        f"{stage}.ffn.layers.1.bias": layer.fc2.bias,
        f"{stage}.ffn_norm.weight": layer.final_layer_norm.weight,
        f"{stage}.cls_fcs.1.weight": layer.class_head[1].weight,
        f"{stage}.fc_cls.weight": layer.class_head[3].weight,
        f"{stage}.reg_fcs.0.weight": layer.box_head[0].weight,
        f"{stage}.fc_reg.bias": layer.box_head[3].bias,
    }.items():
        assert torch.equal(state[name], parameter), name
    rows = torch.cat([getattr(layer.self_attn, f"{part}_proj").weight for part in "qkv"])
    assert torch.equal(rows, state[f"{stage}.attention.attn.in_proj_weight"])


@pytest.mark.parametrize("version", [1, 2])
def test_rt_detrs_own_file_loads_and_its_averaged_weights_are_taken(tmp_path, version):
    model = rt_detr_model(version, bottleneck=False, blocks=[2, 1, 1, 1], layers=2, expansion=0.5)
    shapes = dict(rt_detr([2, 1, 1, 1], False, layers=2, classes=80, hidden=128, version=version))
    state = save(tmp_path / "rtdetr.pth", shapes, lambda state: {"ema": {"module": state, "updates": 9}, "model": {}})
    fill_from(model, tmp_path / "rtdetr.pth")
    decoder, stages = model.model.decoder, model.model.backbone.model.encoder.stages
    names = ("0", "0") if version == 1 else ("conv", "proj")
    for name, parameter in {
        "backbone.conv1.conv1_3.conv.weight": model.model.backbone.model.embedder.embedder[2].convolution.weight,
        "backbone.res_layers.0.blocks.0.short.norm.weight": stages[0].layers[0].shortcut.normalization.weight,
        "backbone.res_layers.2.blocks.0.short.conv.norm.bias": stages[2].layers[0].shortcut[1].normalization.bias,
        "backbone.res_layers.0.blocks.1.branch2b.conv.weight": stages[0].layers[1].layer[1].convolution.weight,
        f"encoder.input_proj.1.{names[0]}.weight": model.model.encoder_input_proj[1][0].weight,
        "encoder.encoder.0.layers.0.norm2.weight": model.model.encoder.aifi[0].layers[0].final_layer_norm.weight,
        "encoder.pan_blocks.1.bottlenecks.2.conv2.norm.running_mean": (
            model.model.encoder.pan_blocks[1].bottlenecks[2].conv2.norm.running_mean
        ),
        f"decoder.enc_output.{names[1]}.weight": model.model.enc_output[0].weight,
        "decoder.denoising_class_embed.weight": model.model.denoising_class_embed.weight,
        "decoder.decoder.layers.1.cross_attn.sampling_offsets.weight": decoder.layers[1].encoder_attn.sampling_offsets.weight,
        "decoder.decoder.layers.1.norm2.weight": decoder.layers[1].encoder_attn_layer_norm.weight,
        "decoder.dec_score_head.1.weight": decoder.class_embed[1].weight,
        "decoder.dec_bbox_head.1.layers.2.bias": decoder.bbox_embed[1].layers[2].bias,
    }.items():
        assert torch.equal(state[name], parameter), name
    if version == 2:
        scale = decoder.layers[1].encoder_attn.n_points_scale
        assert torch.equal(state["decoder.decoder.layers.1.cross_attn.num_points_scale"], scale)


@pytest.mark.parametrize("name", ["detr-r50", "smca-r50", "adamixer-r50", "rtdetr-r50", "rtdetrv2-r50", "rtdetrv2-r18"])
def test_published_sizes_fit(name, tmp_path):
    """Names and shapes alone: neither side holds a number."""
    full, basic = [3, 4, 6, 3], [2, 2, 2, 2]
    with torch.device("meta"):
        model, shapes = {
            "detr-r50": lambda: (
                hf.DetrForObjectDetection(hf.DetrConfig(num_labels=91)),
                detr(50, 256, 2048, layers=6, queries=100, columns=92),
            ),
            "smca-r50": lambda: (
                SmcaDetrForObjectDetection(SmcaDetrConfig(num_labels=92)),
                detr(50, 256, 2048, layers=6, queries=300, columns=92, smca=True),
            ),
            "adamixer-r50": lambda: (
                AdaMixerForObjectDetection(AdaMixerConfig(num_labels=80)),
                adamixer(50, 256, 2048, stages=6, queries=100, classes=80, sizes=(4, 32, 128)),
            ),
            "rtdetr-r50": lambda: (rt_detr_model(1, True, full, 6, 1.0), rt_detr(full, True, 6, 80, 256, version=1)),
            "rtdetrv2-r50": lambda: (rt_detr_model(2, True, full, 6, 1.0), rt_detr(full, True, 6, 80, 256, version=2)),
            "rtdetrv2-r18": lambda: (rt_detr_model(2, False, basic, 3, 0.5), rt_detr(basic, False, 3, 80, 128, version=2)),
        }[name]()
        state = {key: torch.empty(shape) for key, shape in shapes}
    fill(model, state, name)
    with pytest.raises(UserError, match=re.escape(f"{name} does not fit")):
        fill(model, dict(list(state.items())[1:]), name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: [state.pop(name) for name in list(state) if ".norm1." in name], r"8 missing \(.*layer_norm.*,.*,.*\)"),
        (
            lambda state: state.update({f"extra.{n}": torch.zeros(1) for n in range(5)}),
            r"5 unexpected \(extra.0, extra.1, extra.2\)",
        ),
        (
            lambda state: state.update({"class_embed.bias": torch.zeros(9)}),
            r"class_embed.bias \(9,\) where the model has \(5,\)",
        ),
    ],
    ids=["missing", "unexpected", "other shape"],
)
def test_what_does_not_fit_is_named_and_nothing_is_loaded(change, message):
    model, shapes = small_detr()
    state, before = {name: torch.ones(shape) for name, shape in shapes.items()}, model.class_labels_classifier.weight.clone()
    change(state)
    with pytest.raises(UserError, match=message):
        fill(model, state, "detr.pth")
    assert torch.equal(model.class_labels_classifier.weight, before)


class Runs:
    """A pickle that would run code."""

    def __reduce__(self):
        return print, ("the pickle ran code",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.write_bytes(b"no checkpoint"), "damaged or holds Python objects|cannot be read"),
        (lambda path: torch.save({"model": Runs()}, path), "which can run code"),
        (lambda path: torch.save({"epoch": 3}, path), "holds no state dict"),
        (lambda path: torch.save([torch.zeros(1)], path), "holds no state dict"),
    ],
    ids=["absent", "garbage", "code", "no weights", "list"],
)
def test_unreadable_files_are_refused_in_a_sentence(tmp_path, capsys, content, message):
    content(tmp_path / "file.pth")
    with pytest.raises(UserError, match=message):
        read_checkpoint(tmp_path / "file.pth")
    assert "ran code" not in capsys.readouterr().out


def test_a_family_without_a_published_layout_is_refused():
    model = SimpleNamespace(config=SimpleNamespace(model_type="dab_detr"))
    with pytest.raises(UserError, match="unknown published checkpoint layout 'dab_detr'"):
        fill(model, {}, "dab.pth")


SMALL = {
    "detr": (small_detr, as_trained),
    "smca_detr": (small_smca, as_trained),
    "adamixer": (small_adamixer, lambda state: {"meta": {}, "state_dict": state}),
}


@pytest.mark.parametrize("model_type", SMALL)
def test_a_file_alone_says_which_detector_it_is(tmp_path, model_type):
    (build, wrap), file = SMALL[model_type], tmp_path / "own.pth"
    model, shapes = build()
    save(file, shapes, wrap)
    fill_from(model, file)
    classes = [f"class {number}" for number in range(model.config.num_labels)]
    with pytest.raises(UserError, match=rf"own\.pth has {len(classes)} classes, which are not COCO's: .*own\.json"):
        load(file)
    file.with_suffix(".json").write_text(json.dumps(classes))
    found = load(file)
    assert (found.config.model_type, found.class_map.names) == (model_type, tuple(classes))
    assert found.preprocessing.shortest_edge == 800
    expected, pixels = model.eval().state_dict(), torch.randn(1, 3, 64, 96)
    assert found.model.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in found.model.state_dict().items())
    with torch.no_grad():
        torch.testing.assert_close(found.model(pixels).logits, model(pixels).logits, equal_nan=True)


@pytest.mark.parametrize("version", [1, 2])
def test_rt_detrs_file_alone(tmp_path, version):
    shapes = dict(rt_detr([2, 1, 1, 1], False, layers=2, classes=80, hidden=128, version=version))
    save(tmp_path / "rtdetr.pth", shapes, lambda state: {"ema": {"module": state}})
    found = load(tmp_path / "rtdetr.pth")
    assert found.config.model_type == ("rt_detr" if version == 1 else "rt_detr_v2")
    assert (found.class_map.names[0], found.class_map.dataset_ids[-1]) == ("person", 90)
    assert found.preprocessing.size == (640, 640)


def test_rt_detrs_file_as_the_weights_of_a_model_is_the_whole_detector(tmp_path):
    file = tmp_path / "rtdetr.pth"
    shapes = dict(rt_detr([2, 1, 1, 1], False, layers=2, classes=80, hidden=128, version=2))
    state = save(file, shapes, lambda state: {"ema": {"module": state}})
    said = []
    found = build(NewDetector(model="rt_detr_v2", weights=str(file)), ClassMap(("fox", "dog"), (1, 2)), said.append)
    assert [line.split(", ")[0] for line in said] == [f"{file} is a whole rt_detr_v2", f"{file}: kept 1 of the classes (dog)"]
    assert (found.class_map.names, found.preprocessing.size) == (("fox", "dog"), (640, 640))
    assert torch.equal(found.model.model.enc_score_head.weight[1], state["decoder.enc_score_head.weight"][16])  # COCO's dog


@pytest.mark.slow
@pytest.mark.parametrize("name", ["detr-r50-e632da11", "detr-r50-dc5-f0fb7ef5"])
def test_detr_r50_alone_has_cocos_classes_by_its_ids(tmp_path, name):
    save(tmp_path / f"{name}.pth", dict(detr(50, 256, 2048, layers=6, queries=100, columns=92)), lambda state: {"model": state})
    found = load(tmp_path / f"{name}.pth")
    assert (found.class_map.names[1], found.class_map.names[90], found.class_map.dataset_ids[90]) == (
        "person",
        "toothbrush",
        90,
    )
    assert len(found.class_map) == 91
    assert sum(parameter.numel() for parameter in found.parameters()) == pytest.approx(41.5e6, rel=0.01)
    with torch.no_grad():
        cells = found.model.model.backbone(torch.zeros(1, 3, 64, 96), torch.ones(1, 64, 96))[-1][0].shape[-2:]
    assert cells == ((4, 6) if "dc5" in name else (2, 3))


def test_a_file_of_no_known_layout_is_refused_with_its_first_keys(tmp_path):
    torch.save({f"layer{n}.weight": torch.zeros(1) for n in range(5)}, tmp_path / "other.pth")
    with pytest.raises(
        UserError, match=r"other\.pth is not .* \(its first keys: layer0\.weight, layer1\.weight, layer2\.weight\)"
    ):
        load(tmp_path / "other.pth")


def test_a_file_that_lacks_keys_is_refused_with_the_first(tmp_path):
    _, shapes = small_detr()
    for lost, message in {
        "query_embed.weight": "no DETR can be built from its keys .*query_embed.weight",
        "transformer.encoder.layers.0.norm1.bias": r"own\.pth does not fit this detr: 1 missing \(\S+layer_norm\.bias\)",
    }.items():
        save(tmp_path / "own.pth", {key: shape for key, shape in shapes.items() if key != lost})
        with pytest.raises(UserError, match=message):
            load(tmp_path / "own.pth")
