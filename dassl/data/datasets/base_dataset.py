"""One image (``Datum``) and lists of them (``DatasetBase``)."""

from __future__ import annotations

import os.path as osp
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from dassl.utils import check_availability, mkdir_if_missing, print_detail, unpack_archive


class Datum:
    """An image file with its label.

    Args:
        impath: path of an existing image file.
        label: class index from 0.
        domain: domain index from 0.
        classname: class name.

    Raises:
        TypeError: if ``impath`` is not a string.
        FileNotFoundError: if there is no such file.
    """

    def __init__(
        self, impath: str = "", label: int = 0, domain: int = 0, classname: str = ""
    ) -> None:
        if not isinstance(impath, str):
            raise TypeError(f"the path of an image must be a str, not {type(impath).__name__}")
        if not osp.isfile(impath):
            raise FileNotFoundError(
                f'no image file at "{impath}" (class {classname!r}); check DATASET.ROOT (--root) '
                "and that the images of the data set are extracted there"
            )
        self._impath = impath
        self._label = label
        self._domain = domain
        self._classname = classname

    @property
    def impath(self) -> str:
        return self._impath

    @property
    def label(self) -> int:
        return self._label

    @property
    def domain(self) -> int:
        return self._domain

    @property
    def classname(self) -> str:
        return self._classname

    def __repr__(self) -> str:
        return f"Datum({self._impath!r}, {self._label}, {self._domain}, {self._classname!r})"


class DatasetBase:
    """Train, validation and test lists of :class:`Datum`.

    Args:
        train_x: labelled training images; class names and labels are taken from them.
        train_u: unlabelled training images (optional).
        val: validation images (optional).
        test: test images; None where there is nothing to test on.

    Raises:
        ValueError: if ``train_x`` is empty, so that there would be no classes.
    """

    # Folder below DATASET.ROOT.
    dataset_dir = ""
    # Names of the domains of a multi-domain data set.
    domains: Sequence[str] = []
    # Data set to train on, where train_x holds the test images, for the sake of class names.
    tests_of = ""
    # What to do about a damaged image file, as the end of a sentence.
    image_remedy = "fetch or extract it again"

    def __init__(
        self,
        train_x: list[Datum] | None = None,
        train_u: list[Datum] | None = None,
        val: list[Datum] | None = None,
        test: list[Datum] | None = None,
    ) -> None:
        if not train_x:
            raise ValueError(
                f"data set {type(self).__name__} has no training images (train_x is empty), hence "
                "no classes; check its folder and DATASET.SUBSAMPLE_CLASSES"
            )
        self._train_x = train_x
        self._train_u = train_u
        self._val = val
        self._test = test
        self._num_classes = self.get_num_classes(train_x)
        self._lab2cname, self._classnames = self.get_lab2cname(train_x)

    @property
    def train_x(self) -> list[Datum]:
        return self._train_x

    @property
    def train_u(self) -> list[Datum] | None:
        return self._train_u

    @property
    def val(self) -> list[Datum] | None:
        return self._val

    @property
    def test(self) -> list[Datum] | None:
        return self._test

    @property
    def lab2cname(self) -> dict[int, str]:
        return self._lab2cname

    @property
    def classnames(self) -> list[str]:
        return self._classnames

    @property
    def num_classes(self) -> int:
        return self._num_classes

    @staticmethod
    def get_num_classes(data_source: Iterable[Datum]) -> int:
        """Return the largest label + 1."""
        return max(item.label for item in data_source) + 1

    @staticmethod
    def get_lab2cname(data_source: Iterable[Datum]) -> tuple[dict[int, str], list[str]]:
        """Return the class name by label, and the names in the order of labels.

        If a label has several names, the first one in ``data_source`` counts.
        """
        mapping: dict[int, str] = {}
        for item in data_source:
            mapping.setdefault(item.label, item.classname)
        return mapping, [mapping[label] for label in sorted(mapping)]

    def check_input_domains(
        self, source_domains: Iterable[str], target_domains: Iterable[str]
    ) -> None:
        """Raise ``ValueError`` unless all domain names are known and there is a source."""
        source_domains = list(source_domains)
        if not source_domains:
            raise ValueError("source domains (--source-domains) are empty")
        self.is_input_domain_valid(source_domains)
        self.is_input_domain_valid(target_domains)

    def is_input_domain_valid(self, input_domains: Iterable[str]) -> None:
        """Raise ``ValueError`` for a name that is not in ``domains``."""
        for domain in input_domains:
            check_availability(domain, self.domains)

    def download_data(self, url: str, dst: str, from_gdrive: bool = True) -> None:
        """Download an archive and unpack it in its own folder.

        Args:
            url: address of a zip or tar archive.
            dst: path of the archive; its folder receives the content.
            from_gdrive: True for Google Drive links; False raises, as there is no other source.

        Raises:
            ValueError: for other sources or archive types.
            OSError: if nothing could be downloaded.
        """
        if not from_gdrive:
            raise ValueError(
                f"only Google Drive links are downloaded here; fetch {url} yourself and save it as "
                f'"{dst}"'
            )
        import gdown

        folder = osp.dirname(dst)
        mkdir_if_missing(folder)
        gdown.download(url, dst, quiet=False)
        if not osp.isfile(dst):
            raise OSError(f'could not download {url}; fetch it yourself and save it as "{dst}"')
        print("Extracting file ...")
        unpack_archive(dst, folder)
        print(f"File extracted to {folder}")

    def generate_fewshot_dataset(
        self, *data_sources: list[Datum], num_shots: int = -1, repeat: bool = False
    ) -> Any:
        """Draw ``num_shots`` images per class with Python's random generator.

        The stream of draws equals upstream's: classes in the order of first appearance, one
        ``random.sample`` per class that has enough images.

        Args:
            data_sources: lists to draw from, one after the other.
            num_shots: images per class; < 1 returns the lists unchanged.
            repeat: draw with replacement from classes with fewer images (otherwise all their
                images are taken).

        Returns:
            One list for one source, else a list of lists.
        """
        if num_shots < 1:
            return data_sources[0] if len(data_sources) == 1 else data_sources
        print_detail(f"Creating a {num_shots}-shot dataset")
        output = []
        for data_source in data_sources:
            chosen: list[Datum] = []
            for items in self.split_dataset_by_label(data_source).values():
                if len(items) >= num_shots:
                    chosen.extend(random.sample(items, num_shots))
                elif repeat:
                    chosen.extend(random.choices(items, k=num_shots))
                else:
                    chosen.extend(items)
            output.append(chosen)
        return output[0] if len(output) == 1 else output

    def split_dataset_by_label(self, data_source: Iterable[Datum]) -> dict[int, list[Datum]]:
        """Return the items by label, labels in the order of first appearance."""
        output = defaultdict(list)
        for item in data_source:
            output[item.label].append(item)
        return output

    def split_dataset_by_domain(self, data_source: Iterable[Datum]) -> dict[int, list[Datum]]:
        """Return the items by domain, domains in the order of first appearance."""
        output = defaultdict(list)
        for item in data_source:
            output[item.domain].append(item)
        return output
