"""EuroSAT (Helber et al., 2019): 10 kinds of land cover seen by Sentinel-2, RGB version."""

from __future__ import annotations

from dassl.data.datasets import DATASET_REGISTRY

from .fewshot import FewShotDataset

NEW_NAMES = {
    "AnnualCrop": "Annual Crop Land",
    "Forest": "Forest",
    "HerbaceousVegetation": "Herbaceous Vegetation Land",
    "Highway": "Highway or Road",
    "Industrial": "Industrial Buildings",
    "Pasture": "Pasture Land",
    "PermanentCrop": "Permanent Crop Land",
    "Residential": "Residential Buildings",
    "River": "River",
    "SeaLake": "Sea or Lake",
}


@DATASET_REGISTRY.register()
class EuroSAT(FewShotDataset):
    """Class folders are renamed to short descriptions."""

    dataset_dir = "eurosat"
    image_dir = "2750"
    layout = "2750/<class>/*.jpg"
    split_file = "split_zhou_EuroSAT.json"
    template = "a centered satellite photo of {}."

    def read_annotations(self):
        return self.read_and_split_data(self.image_dir, new_cnames=NEW_NAMES)
