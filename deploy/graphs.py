"""Encoders of a classifier as graphs: ``torch.export`` programs, and ONNX."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from adaptation.classifier import PromptedCLIP
from adaptation.learner import Steps
from clip.changes import Changes, LayerChanges, splice
from clip.weights import convert_weights

#: version of the ONNX operators, the first with attention as one of them that runtimes share
OPSET = 24


class ImageEncoder(nn.Module):
    """Images ``(B, 3, side, side)`` to unit-norm features ``(B, embed_dim)`` or to logits.

    Args:
        model: the classifier.
        logits: classify in the graph, ``(B, C)``: for models whose logits are no scaled cosine
            similarities to fixed embeddings.
        in_half: compute in half precision, as ``PREC fp16`` does; images stay float32.
    """

    def __init__(self, model: PromptedCLIP, logits: bool, in_half: bool = False) -> None:
        super().__init__()
        if in_half:
            model = copy.deepcopy(model)
            convert_weights(model.clip)
        # parts, not the model: a graph holds the parameters of all modules, used or not
        self.visual, self.learner = model.clip.visual, model.learner
        self.of_text = model.clip if logits and model.learner.image_conditioned else None
        self._model, self.logits = (model,), logits

    def forward(self, image: Tensor) -> Tensor:
        (model,) = self._model
        return model.predict(image).logits if self.logits else model.image_features(image)


class TextEncoder(nn.Module):
    """Token ids ``(N, context_length)`` to text features ``(N, embed_dim)`` of a learner.

    Args:
        model: the classifier.
        learned: give the learner's text features, of unit norm; otherwise the frozen CLIP's, not
            normalised.

    Raises:
        ValueError: the prompts belong to classes or samples, or stand at places that depend on the
            class name.
    """

    def __init__(self, model: PromptedCLIP, learned: bool = True) -> None:
        super().__init__()
        clip, learner = model.clip, model.learner
        self.learner = learner if learned else None
        if learner.class_specific or learner.image_conditioned:
            raise ValueError("what was learned belongs to the classes of the run, or to an image")
        prompts = Changes.of(learner.text_changes()).prompts()
        if not all(isinstance(p.at, int) and p.tokens.dim() == 2 for p in prompts):
            raise ValueError("its text prompts stand at places that depend on the class name")
        self.token_embedding, self.ln_final = clip.token_embedding, clip.ln_final
        self.blocks = clip.transformer.resblocks
        self.positions, self.projection = clip.positional_embedding, clip.text_projection

    def forward(self, tokens: Tensor, frozen: Tensor | None = None) -> Tensor:
        """Encode texts.

        Args:
            tokens: ids of the template, filled with the class names.
            frozen: ``(N, embed_dim)`` features of the frozen CLIP, where the learner reads them.
        """
        if self.learner is None:
            return self.encode(tokens, None)
        steps = cast(Steps, _TextSteps(self, tokens, frozen))
        return self.learner.text_features(steps)

    def encode(self, tokens: Tensor, changes: LayerChanges | None) -> Tensor:
        """Encode texts with changes of the blocks; every text at full length."""
        changes, end = Changes.of(changes), tokens.argmax(dim=-1)  # (N,)
        x = self.token_embedding(tokens)  # (N, context_length, width)
        for prompt in changes.at_input:
            x, end = splice(x, prompt), end + prompt.growth
        x = x[:, : len(self.positions)]  # what is cut off stands behind the end of text
        x = x + self.positions[: x.shape[1]]
        for number, block in enumerate(self.blocks):
            change = changes[number]
            for prompt in changes.in_front_of(number):
                x, end = splice(x, prompt), end + prompt.growth
            normed = block.attention_input(x, change)
            q, k, v = block.attn.project(normed, change).chunk(3, dim=-1)
            x = block.finish(x, normed, block.attn.attend(q, k, v, causal=True), change)
        x = self.ln_final(x)
        index = end[:, None, None].expand(-1, 1, x.shape[-1])
        return x.gather(1, index).squeeze(1) @ self.projection


class _TextSteps:
    """The steps of a learner's ``text_features``, on texts that are the input of a graph."""

    #: none is known while the graph is made
    classnames: Sequence[str] = ()

    def __init__(self, encoder: TextEncoder, tokens: Tensor, frozen: Tensor | None) -> None:
        self.encoder, self.tokens, self.frozen = encoder, tokens, frozen

    def encode_text(self, changes: LayerChanges | None = None) -> Tensor:
        return self.encoder.encode(self.tokens, changes)

    def frozen_text_features(self) -> Tensor:
        if self.frozen is None:
            raise NeedsFrozenText
        return self.frozen

    def raw_text_features(self, projection: Tensor | None = None, unit: bool = False) -> Tensor:
        raise ValueError("its text features are averages over several templates")


class NeedsFrozenText(Exception):
    """A learner reads the frozen CLIP's text features, which were not given."""


@contextmanager
def _quietly() -> Iterator[None]:
    """Hide what the exporters warn of; their results are checked."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def export_program(
    module: nn.Module, inputs: dict[str, Tensor], free: bool = True
) -> ExportedProgram:
    """Trace a module.

    Args:
        module: takes ``inputs`` by name.
        inputs: examples.
        free: whether the first dimension, the same of all inputs, may have any size from 1 on.

    Raises:
        ValueError: the module cannot be traced; the text says where.
    """
    count = {0: Dim("count", min=1)} if free else None
    shapes = dict.fromkeys(inputs, count)
    try:
        with torch.no_grad(), _quietly():
            return torch.export.export(module, (), inputs, dynamic_shapes=shapes)
    except Exception as error:  # whatever code of a method or PyTorch raises
        reason = str(error).strip().splitlines()[0][:300]
        raise ValueError(f"it cannot be exported as a graph: {reason}") from error


def reads_frozen_text(encoder: TextEncoder, tokens: Tensor) -> bool:
    """Return whether the learner of a text encoder reads the frozen CLIP's text features."""
    try:
        with torch.no_grad():
            encoder(tokens)
    except NeedsFrozenText:
        return True
    return False


def quantise(path: Path) -> None:
    """Store the weights of an ONNX file's matrix products as 8-bit integers, in its place.

    The products are computed on integers; activations are scaled to 8 bits in every call.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(path)
    _split_products(model.graph)
    with _quietly():
        quantize_dynamic(
            model,
            path,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            weight_type=QuantType.QInt8,
        )


def _split_products(graph: onnx.GraphProto) -> None:
    """Write scaled products with a bias, ``Gemm``, as ``MatMul`` and ``Add`` of scaled weights."""
    values = {value.name: value for value in graph.initializer}
    nodes = []
    for node in graph.node:
        how = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
        weights = node.input[1:]
        if node.op_type != "Gemm" or how.get("transA") or how.get("transB") or len(weights) != 2:
            nodes.append(node)
            continue
        names = []
        for name, factor in zip(weights, ("alpha", "beta"), strict=True):
            scaled = onnx.numpy_helper.to_array(values[name]) * np.float32(how.get(factor, 1.0))
            names.append(f"{name}.{node.output[0]}")
            graph.initializer.append(onnx.numpy_helper.from_array(scaled, names[-1]))
        product = f"{node.output[0]}.product"
        nodes.append(onnx.helper.make_node("MatMul", [node.input[0], names[0]], [product]))
        nodes.append(onnx.helper.make_node("Add", [product, names[1]], list(node.output)))
    used = {name for node in nodes for name in node.input}
    kept = [value for value in graph.initializer if value.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)


def write_onnx(program: ExportedProgram, output: str, path: Path) -> None:
    """Write a program as ONNX, in one file.

    Args:
        program: of :func:`export_program`.
        output: name of its output.
        path: file to write.
    """
    with _quietly():
        exported = torch.onnx.export(
            program, dynamo=True, opset_version=OPSET, output_names=[output], verbose=False
        )
    assert exported is not None
    model = exported.model_proto
    for node in model.graph.node:
        del node.metadata_props[:]  # the code that it comes from, with paths of this machine
    for value in (*model.graph.input, *model.graph.output):
        first = value.type.tensor_type.shape.dim[0]
        if first.dim_param:
            first.dim_param = "count"
    onnx.save(model, path)


def write_program(program: ExportedProgram, path: Path) -> None:
    """Write a program as a ``.pt2`` file, for ``torch.export.load``."""
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    with _quietly():
        torch.export.save(program, path)
