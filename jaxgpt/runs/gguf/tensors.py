"""The tensors of a GGUF file under the names, in the shapes and in the order of a family."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxgpt.runs.gguf.architectures import Architecture
from jaxgpt.runs.gguf.reader import GGUFFile
from jaxgpt.runs.tensor_files import Tensors


class GGUFTensors(Tensors):
    """What `Family.read_params` reads. `values` is the config.json that the file's metadata says."""

    described_by = "metadata"

    def __init__(self, file: GGUFFile, architecture: Architecture, values: dict[str, Any]) -> None:
        super().__init__(file.path, [file.path])
        self._file, self._architecture, self._values = file, architecture, values
        self._own = {architecture.published(name): name for name in file.tensors}
        if values["tie_word_embeddings"]:  # a stored head has the table's bytes
            self._own.pop(architecture.family.head.name, None)

    def names(self) -> list[str]:
        return sorted(self._own)

    def shape(self, name: str) -> tuple[int, ...]:
        shape = self._file.tensors[self._find(name)].shape
        order = self._architecture.order(name)
        return shape[::-1] if order and not order.heads else shape

    def read(self, name: str) -> np.ndarray:
        array = self._file.read(self._find(name))
        order = self._architecture.order(name)
        if order is None:
            return array
        heads = self._values.get(order.heads) or self._values.get("num_attention_heads", 1)
        return order.ours(array, heads)

    def own_name(self, name: str) -> str:
        try:
            return self._own.get(name) or self._architecture.own(name)
        except KeyError:
            return name

    def _find(self, name: str) -> str:
        if name not in self._own:
            raise self.unknown(name)
        return self._own[name]
