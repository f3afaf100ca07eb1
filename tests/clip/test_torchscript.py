"""Weights of TorchScript archives are those that ``torch.jit.load`` finds."""

import pytest
import torch
from torch import nn

from clip.torchscript import is_torchscript, load_weights

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]


class Tensors(nn.Module):
    """Tensors of all types and layouts, and attributes that are no weights."""

    sizes: list[int]
    table: dict[str, list[float]]
    kept: list[torch.Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.sizes, self.table, self.kept = [1, 2], {"a": [1.0]}, [torch.ones(2)]
        self.mask, self.none, self.pair = torch.zeros(3, 3), None, (1, "text")
        self.large, self.device = 2**40, torch.device("cpu")
        self.weight = nn.Parameter(torch.rand(2, 3).bfloat16())
        self.row = nn.Parameter(self.weight.data[1])  # of the same storage
        self.smaller = nn.Parameter(torch.rand(4).half())
        self.register_parameter("absent", None)
        for name, value in {
            "turned": torch.arange(6).view(2, 3).t(),
            "empty": torch.empty(0, 3),
            "scalar": torch.tensor(5, dtype=torch.int32),
            "truth": torch.tensor([True, False]),
            "octets": torch.arange(5).byte(),
            "exact": torch.rand(3).double(),
        }.items():
            self.register_buffer(name, value)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tensors = Tensors()
        self.tail = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout())
        self.blocks = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
        self.tied = self.blocks[0]
        self.named = nn.ModuleDict({"norm": nn.LayerNorm(4)})
        self.register_buffer("resolution", torch.tensor(32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.tail(x)


@pytest.mark.parametrize(
    "make", [torch.jit.script, lambda model: torch.jit.trace(model, torch.zeros(1, 3, 8, 8))]
)
def test_all_kinds_of_tensors(make, tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "model.pt"
    torch.jit.save(make(Model().eval()), path)
    assert is_torchscript(path)
    found, expected = load_weights(path), torch.jit.load(path, map_location="cpu").state_dict()
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and found[name].stride() == value.stride(), name
        assert torch.equal(found[name], value), name
    row, weight = found["tensors.row"], found["tensors.weight"]
    assert row.untyped_storage().data_ptr() == weight.untyped_storage().data_ptr()
