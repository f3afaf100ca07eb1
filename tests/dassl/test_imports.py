from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Names that published prompt-learning code imports, by module.
PUBLIC = {
    "dassl.engine": "TRAINER_REGISTRY TrainerX TrainerXU TrainerBase SimpleTrainer SimpleNet "
    "build_trainer",
    "dassl.engine.trainer": "TrainerX TrainerXU TrainerBase SimpleTrainer SimpleNet SummaryWriter",
    "dassl.config": "get_cfg_default clean_cfg",
    "dassl.data": "DataManager DatasetWrapper",
    "dassl.data.data_manager": "build_data_loader DataManager DatasetWrapper build_transform "
    "INTERPOLATION_MODES",
    "dassl.data.datasets": "DATASET_REGISTRY Datum DatasetBase build_dataset",
    "dassl.data.datasets.base_dataset": "Datum DatasetBase",
    "dassl.data.transforms": "build_transform INTERPOLATION_MODES",
    "dassl.data.transforms.transforms": "AVAI_CHOICES Random2DTranslation Cutout GaussianNoise "
    "InstanceNormalization",
    "dassl.data.samplers": "build_sampler RandomDomainSampler SeqDomainSampler RandomClassSampler",
    "dassl.optim": "build_optimizer build_lr_scheduler",
    "dassl.optim.radam": "RAdam AdamW",
    "dassl.utils.torchtools": "load_checkpoint save_checkpoint resume_from_checkpoint",
    "dassl.optim.lr_scheduler": "ConstantWarmupScheduler LinearWarmupScheduler",
    "dassl.metrics": "compute_accuracy compute_distance_matrix",
    "dassl.evaluation": "build_evaluator EVALUATOR_REGISTRY EvaluatorBase Classification",
    "dassl.utils": "load_pretrained_weights load_checkpoint setup_logger set_random_seed "
    "collect_env_info mkdir_if_missing check_isfile read_json write_json listdir_nohidden "
    "save_checkpoint resume_from_checkpoint MetricMeter AverageMeter count_num_param "
    "tolist_if_not read_image Registry check_availability download_url open_all_layers "
    "open_specified_layers init_network_weights",
    "dassl.modeling": "build_head build_backbone build_network BACKBONE_REGISTRY HEAD_REGISTRY "
    "NETWORK_REGISTRY",
    "dassl.modeling.ops": "ReverseGrad mixup",
    "dassl.modeling.ops.mixup": "mixup",
    "dassl.modeling.ops.utils": "sharpen_prob create_onehot ema_model_update linear_rampup "
    "sigmoid_rampup shuffle_index reverse_index",
}


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names(module):
    loaded = importlib.import_module(module)
    missing = [name for name in PUBLIC[module].split() if not hasattr(loaded, name)]
    assert not missing


@pytest.mark.parametrize("module", ["dassl.engine.trainer", "dassl.data.data_manager"])
def test_a_name_that_is_not_there_is_named(module):
    with pytest.raises(AttributeError, match=f"'{module}' has no attribute 'SumaryWriter'"):
        _ = importlib.import_module(module).SumaryWriter


def test_importing_the_engine_leaves_heavy_packages_alone():
    code = (
        "import sys, logging, dassl.engine, dassl.data.datasets, dassl.utils\n"
        "heavy = {'torchvision', 'sklearn', 'tensorboard', 'gdown', 'scipy'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {heavy}' if heavy or logging.root.manager.disable else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=120)


def test_the_engine_imports_nothing_from_above():
    for path in (ROOT / "dassl").rglob("*.py"):
        for line in path.read_text().splitlines():
            words = line.split()
            if words[:1] in (["import"], ["from"]):
                top = words[1].split(".")[0]
                assert top not in ("clip", "trainers", "datasets", "train"), f"{path}: {line}"
