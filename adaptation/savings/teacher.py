"""Cache of the frozen CLIP's features on disk: of the teacher's templates and of repeated views.

The key of a file names everything that its features depend on: the weights (SHA-256 of the state
dict), the precision, the kind of device and its libraries, the source of the encoders, transforms
and random draws, the version of PyTorch, and the class names and templates, or the size of the
batches and the recipe of the views (``dassl.data.views``). A change of any of them leads to another
file.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import Tensor

import clip
import dassl.data
from clip.model import CLIP
from dassl.utils import random_state, tools
from support.bounded_folder import BoundedFolder
from support.documents import parse_json
from support.download import CACHE_VARIABLE, cache_folder
from support.files import sha256_of_all

#: bytes of a view's name within its recipe
NAME_BYTES = 16
#: the only metadata entry, since safetensors writes several in random order
METADATA = "teacher"
SUFFIX = ".safetensors"
#: longest wait, in seconds, for another process that writes
WAIT_S = 30.0

_fingerprints: WeakKeyDictionary[CLIP, tuple[list, str]] = WeakKeyDictionary()


def weights_fingerprint(model: CLIP) -> str:
    """Return the SHA-256 of names, types, shapes and values of a state dict, kept per model."""
    tensors = model.state_dict()
    state = [(name, t.data_ptr(), t.dtype, t._version) for name, t in tensors.items()]
    earlier_state, fingerprint = _fingerprints.get(model, (None, ""))
    if earlier_state != state:
        fingerprint = _digest(tensors)
        _fingerprints[model] = (state, fingerprint)
    return fingerprint


@functools.cache
def source_fingerprint() -> str:
    """Return the SHA-256 of the source files that compute frozen features and keep them."""
    here = Path(__file__).parent.parent
    own = ("learner.py", "classifier.py", "texts.py", "together.py")
    files = [Path(tools.__file__), Path(random_state.__file__), *(here / name for name in own)]
    files += sorted(here.glob("savings/*.py"))
    for package in (clip, dassl.data):
        files += sorted(Path(package.__path__[0]).rglob("*.py"))
    return sha256_of_all(files)


class FeatureFiles:
    """Files of tensors in a :class:`~support.bounded_folder.BoundedFolder`.

    If the folder cannot be used, nothing is kept; a note says so once.

    Args:
        limit_mb: largest total size of the files, in 10^6 bytes.
        folder: folder of the files.
    """

    def __init__(self, limit_mb: int, folder: Path) -> None:
        self.folder = BoundedFolder(
            folder,
            SUFFIX,
            limit_mb * 10**6,
            WAIT_S,
            what="features of the frozen CLIP",
            limit_key="MODEL.TEACHER_CACHE_MB",
            variable=CACHE_VARIABLE,
        )

    def load(self, kind: str, key: Mapping[str, Any]) -> dict[str, Tensor] | None:
        """Read tensors to the CPU; return ``None`` if there is no intact file.

        Args:
            kind: first part of the file's name.
            key: everything that the tensors depend on, in types of JSON.
        """
        try:
            return self.folder.load(_file_name(kind, key), functools.partial(_read, key))
        except OSError as error:
            text = f"features of the frozen CLIP are not read: {error}"
            self.folder.note_once("folder", text)
            return None

    def save(
        self,
        kind: str,
        key: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        merge: Callable[[dict[str, Tensor], Mapping[str, Tensor]], Mapping[str, Tensor]]
        | None = None,
    ) -> None:
        """Write a file, whole or not at all.

        Args:
            kind, key: as for :meth:`load`.
            tensors: tensors to keep.
            merge: joins the present content of the file, which another process may have written,
                with ``tensors``; by default the content is replaced.
        """
        limit = self.folder.limit
        try:
            with self.folder.locked() as save_file:
                if merge is not None and (present := self.load(kind, key)) is not None:
                    tensors = merge(present, tensors)
                data = _serialised(key, tensors)
                if len(data) <= limit:
                    write = functools.partial(Path.write_bytes, data=data)
                    save_file(_file_name(kind, key), len(data), write)
                    return
            self.folder.note_once(
                "size",
                f"features of the frozen CLIP that take {len(data) / 1e6:,.1f} MB are not "
                f"kept: MODEL.TEACHER_CACHE_MB is {limit // 10**6}",
            )
        except OSError as error:  # no permission, a full disk, a lock that another process holds
            text = f"features of the frozen CLIP are not kept: {error}"
            self.folder.note_once("folder", text)


def _file_name(kind: str, key: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return f"{kind}-{digest[:32]}{SUFFIX}"


def _serialised(key: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bytes:
    """Serialise tensors, with their key and checksum as metadata."""
    content = {"key": key, "sha256": _digest(tensors)}
    on_host = {name: tensor.cpu() for name, tensor in tensors.items()}
    return serialise(on_host, {METADATA: json.dumps(content)})


def _read(key: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file.

    Raises:
        ValueError: the file is damaged, or of another key.
        OSError: it cannot be read.
    """
    # safetensors opens a file twice, for its header and its data; between, it may be replaced
    for _ in range(3):
        try:
            with safe_open(path, framework="pt") as file:
                stored = parse_json(file.metadata()[METADATA])
                # copies: on memory that is not aligned, as within a file, a CPU rounds otherwise
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
        except (SafetensorError, TypeError, KeyError) as error:
            raise ValueError(str(error)) from error
        if stored == {"key": key, "sha256": _digest(tensors)}:
            return tensors
    raise ValueError("its content is not what was written")


@dataclass
class _Bank:
    """Features of views of one recipe, computed in batches of one size, by name in the recipe."""

    rows: dict[str, Tensor]
    unsaved: dict[str, Tensor] = field(default_factory=dict)
    used: bool = True


class TeacherCache:
    """Cache of one CLIP's frozen features, used only where computing would give the same.

    Args:
        model: the frozen CLIP, on its device.
        precision: precision that it computes in.
        limit_mb: largest total size of the files, in 10^6 bytes; 0 computes everything each time.
        folder: folder of the files; by default ``teacher`` in the checkpoints' cache folder.
    """

    def __init__(
        self, model: CLIP, precision: str, limit_mb: int, folder: str | Path | None = None
    ) -> None:
        self.model, self.precision = model, precision
        self.files = FeatureFiles(limit_mb, Path(folder or cache_folder() / "teacher"))
        self._banks: dict[tuple[str, int], _Bank] = {}

    def text_features(
        self,
        classnames: Sequence[str],
        templates: Sequence[str],
        compute: Callable[[], Tensor],
        keep_underscores: bool = False,
    ) -> Tensor:
        """Look up the result of ``compute`` for these names and templates, or compute it.

        Args:
            classnames, templates: what the features are of.
            compute: computes them.
            keep_underscores: whether the texts have the underscores of the names.

        Returns:
            ``(C, embed_dim)``.
        """
        if not self._keeps():
            return compute()
        names = {"classnames": list(classnames), "keep_underscores": keep_underscores}
        key = {**self._key(), **names, "templates": list(templates)}
        found = self.files.load("text", key)
        if found is not None:
            return found["features"].to(self.model.logit_scale.device)
        features = compute()
        self.files.save("text", key, {"features": features})
        return features

    def image_features(
        self, views: Sequence[str], image: Tensor, compute: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Look up the features of a batch, or compute the whole batch if a view of it is new.

        The features of a view are those of the first batch that it was in, and are used only in
        batches of the same size: in another size the matrix products round differently.

        Args:
            views: names of the ``B`` views.
            image: ``(B, 3, side, side)``.
            compute: maps images to ``(B, embed_dim)``.
        """
        if not self._keeps():
            return compute(image)
        places = [self._place(view, len(views), image.device) for view in views]
        rows = [bank.rows.get(name) for bank, name in places]
        known = [row for row in rows if row is not None]
        if len(known) == len(rows):
            return torch.stack(known)
        computed = compute(image)
        for row, (bank, name) in zip(computed, places, strict=True):
            room = (len(bank.rows) + 1) * (row.nbytes + NAME_BYTES) < self.files.folder.limit
            if name not in bank.rows and room:
                bank.rows[name] = bank.unsaved[name] = row
        return computed

    def _keeps(self) -> bool:
        # a hook or a replaced module may change features, but is not part of the key
        return self.files.folder.limit > 0 and self.model.changed_part() is None

    def save(self) -> None:
        """Write new features of views; forget recipes that were not used since the last call."""
        for place, bank in list(self._banks.items()):
            if bank.unsaved:
                self.files.save("views", self._views_key(*place), _packed(bank.unsaved), _merged)
                bank.unsaved = {}
            if not bank.used:
                del self._banks[place]
            bank.used = False

    def _place(self, view: str, batch: int, device: torch.device) -> tuple[_Bank, str]:
        """Return the bank of a view, read from its file at first, and the view's name in it."""
        recipe, name = view.split("/")
        if (recipe, batch) not in self._banks:
            found = self.files.load("views", self._views_key(recipe, batch))
            self._banks[recipe, batch] = _Bank(_unpacked(found, device) if found else {})
        bank = self._banks[recipe, batch]
        bank.used = True
        return bank, name

    def _views_key(self, recipe: str, batch: int) -> dict[str, Any]:
        return {**self._key(), "views": recipe, "batch": batch}

    def _key(self) -> dict[str, Any]:
        device = self.model.logit_scale.device
        kind: list[object] = [device.type, torch.get_float32_matmul_precision()]
        if device.type == "cuda":
            kind += [torch.cuda.get_device_name(device), torch.backends.cudnn.allow_tf32]
            kind += [torch.version.cuda, torch.backends.cudnn.version()]
        elif device.type == "cpu":  # the folder may be shared by machines
            kind.append(torch.backends.cpu.get_cpu_capability())
        return {
            "source": source_fingerprint(),
            "torch": str(torch.__version__),
            "weights": weights_fingerprint(self.model),
            "precision": self.precision,
            "device": kind,
        }


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of named tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _packed(rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Pack named rows in two tensors.

    Returns:
        ``views``, ``(N, NAME_BYTES)`` uint8, and ``features``, ``(N, embed_dim)``.
    """
    names = torch.frombuffer(bytearray.fromhex("".join(rows)), dtype=torch.uint8)
    features = torch.stack(list(rows.values())).cpu()
    return {"views": names.view(-1, NAME_BYTES), "features": features}


def _unpacked(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    names = (bytes(row).hex() for row in tensors["views"].numpy())
    return dict(zip(names, tensors["features"].to(device).unbind(), strict=True))


def _merged(present: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> dict[str, Tensor]:
    cpu = torch.device("cpu")
    return _packed({**_unpacked(new, cpu), **_unpacked(present, cpu)})
