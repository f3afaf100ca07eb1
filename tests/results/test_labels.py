"""What a data set is called in titles."""

import pytest

from results.labels import class_title, dataset_title

OWN = "configs/datasets/imagefolder.yaml"


@pytest.mark.parametrize(
    ("name", "root", "folder", "file", "title"),
    [
        ("OxfordPets", "/data", "", "configs/datasets/oxford_pets.yaml", "OxfordPets"),
        ("ImageFolder", "/data", "birds/2024", "configs/datasets/mybirds.yaml", "mybirds"),
        ("ImageFolder", "/data", "birds/2024/", OWN, "2024"),
        ("ImageFolder", "/data/my birds/", "", OWN, "my birds"),
        ("ImageFolder", "/data", "/elsewhere/Vögel", "", "Vögel"),
        ("ImageFolder", "data/birds/x/..", "", None, "birds"),
        # nothing that is a name
        ("ImageFolder", "", "", OWN, "ImageFolder"),
        ("ImageFolder", "/", "", None, "ImageFolder"),
        ("ImageFolder", "..", "", None, "ImageFolder"),
    ],
)
def test_own_images_are_named_after_their_file_or_folder(name, root, folder, file, title):
    config = {"DATASET": {"NAME": name, "ROOT": root, "IMAGEFOLDER": {"FOLDER": folder}}}
    assert dataset_title(config, {"dataset_config_file": file}) == title


def test_a_config_alone_has_a_title():
    assert dataset_title({"DATASET": {"NAME": "ImageFolder", "ROOT": "/data/birds"}}) == "birds"
    assert dataset_title({"DATASET": {"NAME": "Digits"}}, None) == "Digits"


def test_class_names_have_blanks_for_underscores():
    assert class_title("running_shoe") == "running shoe"
    assert class_title("a_b_c ") == "a b c "
