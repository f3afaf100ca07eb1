"""ImageNet-Sketch (Wang et al., 2019): black and white sketches of the 1000 ImageNet classes."""

from __future__ import annotations

from dassl.data.datasets import DATASET_REGISTRY

from .imagenet import ImageNetVariant


@DATASET_REGISTRY.register()
class ImageNetSketch(ImageNetVariant):
    """About 50 sketches per class, in folders named by WordNet ids."""

    dataset_dir = "imagenet-sketch"
    layout = "images/<wnid>/*, classnames.txt"
