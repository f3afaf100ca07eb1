"""ImageNet-A (Hendrycks et al., 2021): natural images of 200 classes that fool classifiers."""

from __future__ import annotations

from dassl.data.datasets import DATASET_REGISTRY

from .imagenet import ImageNetVariant


@DATASET_REGISTRY.register()
class ImageNetA(ImageNetVariant):
    """Labels count its own 200 folders, not ImageNet's classes."""

    dataset_dir = "imagenet-adversarial"
    image_dir = "imagenet-a"
    layout = "imagenet-a/<wnid>/* (200), classnames.txt"
