"""ImageNet-R (Hendrycks et al., 2021): art, cartoons and other renditions of 200 classes."""

from __future__ import annotations

from dassl.data.datasets import DATASET_REGISTRY

from .imagenet import ImageNetVariant


@DATASET_REGISTRY.register()
class ImageNetR(ImageNetVariant):
    """Labels count its own 200 folders, not ImageNet's classes."""

    dataset_dir = "imagenet-rendition"
    image_dir = "imagenet-r"
    layout = "imagenet-r/<wnid>/* (200), classnames.txt"
