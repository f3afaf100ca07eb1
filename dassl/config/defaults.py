"""Default configuration tree: the keys and values of Dassl 0.6.3, and a few of our own.

Our own are INPUT.EXIF, INPUT.SEEDED_VIEWS, DATALOADER.CACHE, CACHE_MB and TRANSFORM_DEVICE,
TRAIN.SAVE_MINUTES, TEST.KEEP_PREDICTIONS and BASE_AND_NEW. Read them with
``dassl.config.optional``, since a configuration tree made elsewhere lacks them.
"""

from __future__ import annotations

from .node import CfgNode as CN

_C = CN()

_C.VERSION = 1
# Directory for logs and checkpoints.
_C.OUTPUT_DIR = "./output"
# Directory searched for checkpoints to resume from, instead of OUTPUT_DIR.
_C.RESUME = ""
# Seeding happens for values >= 0; a negative value leaves the generators as they are.
_C.SEED = -1
_C.USE_CUDA = True
# cpu, cuda or one of several GPUs as cuda:1; empty: a GPU if there is one, else the CPU.
_C.DEVICE = ""
_C.VERBOSE = True

_C.INPUT = CN()
_C.INPUT.SIZE = (224, 224)
# bilinear, bicubic or nearest
_C.INPUT.INTERPOLATION = "bilinear"
# Names of training transforms, see dassl.data.transforms.AVAI_CHOICES.
_C.INPUT.TRANSFORMS = ()
# True: images stay PIL images.
_C.INPUT.NO_TRANSFORM = False
# True: a training image's view follows from SEED, epoch and image alone (docs/performance.md).
_C.INPUT.SEEDED_VIEWS = False
# True: photos are turned upright as their EXIF orientation says, before any transform.
_C.INPUT.EXIF = False
_C.INPUT.PIXEL_MEAN = [0.485, 0.456, 0.406]
_C.INPUT.PIXEL_STD = [0.229, 0.224, 0.225]
_C.INPUT.CROP_PADDING = 4
_C.INPUT.RRCROP_SCALE = (0.08, 1.0)
_C.INPUT.CUTOUT_N = 1
_C.INPUT.CUTOUT_LEN = 16
_C.INPUT.GN_MEAN = 0.0
_C.INPUT.GN_STD = 0.15
_C.INPUT.RANDAUGMENT_N = 2
_C.INPUT.RANDAUGMENT_M = 10
_C.INPUT.COLORJITTER_B = 0.4
_C.INPUT.COLORJITTER_C = 0.4
_C.INPUT.COLORJITTER_S = 0.4
_C.INPUT.COLORJITTER_H = 0.1
_C.INPUT.RGS_P = 0.2
_C.INPUT.GB_P = 0.5
_C.INPUT.GB_K = 21

_C.DATASET = CN()
# Folder that holds all data sets.
_C.DATASET.ROOT = ""
_C.DATASET.NAME = ""
_C.DATASET.SOURCE_DOMAINS = ()
_C.DATASET.TARGET_DOMAINS = ()
_C.DATASET.NUM_LABELED = -1
# Training images per class; < 1 means all.
_C.DATASET.NUM_SHOTS = -1
_C.DATASET.VAL_PERCENT = 0.1
_C.DATASET.STL10_FOLD = -1
_C.DATASET.CIFAR_C_TYPE = ""
_C.DATASET.CIFAR_C_LEVEL = 1
_C.DATASET.ALL_AS_UNLABELED = False

_C.DATALOADER = CN()
_C.DATALOADER.NUM_WORKERS = 4
# Augmented views per training image.
_C.DATALOADER.K_TRANSFORMS = 1
# True: items also hold img0, the image without augmentation.
_C.DATALOADER.RETURN_IMG0 = False
# Training images decoded once, test images also cropped once, and kept below the folder DASSL_CACHE
# (~/.cache/dassl); docs/performance.md. exact: batches are as without, to the bit; fast: to about a
# grey level in training, to rounding in tests; none: every image is decoded each time.
_C.DATALOADER.CACHE = "exact"
# What that folder may hold in all, in 10^6 bytes; images that take more are decoded each time.
_C.DATALOADER.CACHE_MB = 10000
# Where training images are augmented; "cuda" needs CACHE "fast", and no worker processes are used.
_C.DATALOADER.TRANSFORM_DEVICE = "cpu"
# False: the last batch of labelled images is trained on although it may have fewer images.
_C.DATALOADER.DROP_LAST = True
_C.DATALOADER.TRAIN_X = CN()
_C.DATALOADER.TRAIN_X.SAMPLER = "RandomSampler"
_C.DATALOADER.TRAIN_X.BATCH_SIZE = 32
_C.DATALOADER.TRAIN_X.N_DOMAIN = 0
_C.DATALOADER.TRAIN_X.N_INS = 16
_C.DATALOADER.TRAIN_U = CN()
# True: the four keys below are taken from TRAIN_X.
_C.DATALOADER.TRAIN_U.SAME_AS_X = True
_C.DATALOADER.TRAIN_U.SAMPLER = "RandomSampler"
_C.DATALOADER.TRAIN_U.BATCH_SIZE = 32
_C.DATALOADER.TRAIN_U.N_DOMAIN = 0
_C.DATALOADER.TRAIN_U.N_INS = 16
_C.DATALOADER.TEST = CN()
_C.DATALOADER.TEST.SAMPLER = "SequentialSampler"
_C.DATALOADER.TEST.BATCH_SIZE = 32

_C.MODEL = CN()
# Weights loaded before training (same architecture).
_C.MODEL.INIT_WEIGHTS = ""
_C.MODEL.BACKBONE = CN()
_C.MODEL.BACKBONE.NAME = ""
_C.MODEL.BACKBONE.PRETRAINED = True
_C.MODEL.HEAD = CN()
_C.MODEL.HEAD.NAME = ""
_C.MODEL.HEAD.HIDDEN_LAYERS = ()
_C.MODEL.HEAD.ACTIVATION = "relu"
_C.MODEL.HEAD.BN = True
_C.MODEL.HEAD.DROPOUT = 0.0

_C.OPTIM = CN()
_C.OPTIM.NAME = "adam"
_C.OPTIM.LR = 0.0003
_C.OPTIM.WEIGHT_DECAY = 5e-4
_C.OPTIM.MOMENTUM = 0.9
# A float, so that both 0 and 0.1 may be merged.
_C.OPTIM.SGD_DAMPNING = 0.0
_C.OPTIM.SGD_NESTEROV = False
_C.OPTIM.RMSPROP_ALPHA = 0.99
_C.OPTIM.ADAM_BETA1 = 0.9
_C.OPTIM.ADAM_BETA2 = 0.999
# term in the denominator of adam, amsgrad, adamw and radam
_C.OPTIM.ADAM_EPS = 1e-8
# True: children named in NEW_LAYERS learn at LR, all others at LR * BASE_LR_MULT.
_C.OPTIM.STAGED_LR = False
_C.OPTIM.NEW_LAYERS = ()
_C.OPTIM.BASE_LR_MULT = 0.1
# single_step, multi_step or cosine
_C.OPTIM.LR_SCHEDULER = "single_step"
# Epochs; a last value <= 0 means MAX_EPOCH for single_step.
_C.OPTIM.STEPSIZE = (-1,)
_C.OPTIM.GAMMA = 0.1
# How often the learning rate changes: epoch, or batch. Lengths of the schedule (STEPSIZE,
# WARMUP_EPOCH) are in epochs in any case.
_C.OPTIM.SCHEDULE_PER = "epoch"
# Where cosine ends.
_C.OPTIM.MIN_LR = 0.0
_C.OPTIM.MAX_EPOCH = 10
# Training steps of the run, whose last epoch is cut short; 0: MAX_EPOCH epochs.
_C.OPTIM.MAX_ITERATIONS = 0
# True: MAX_ITERATIONS is for each shot (times DATASET.NUM_SHOTS).
_C.OPTIM.ITERATIONS_PER_SHOT = False
# Epochs of warm-up; <= 0 means none.
_C.OPTIM.WARMUP_EPOCH = -1
# linear or constant
_C.OPTIM.WARMUP_TYPE = "linear"
_C.OPTIM.WARMUP_CONS_LR = 1e-5
_C.OPTIM.WARMUP_MIN_LR = 1e-5
# True: the schedule after the warm-up starts at its own epoch 0.
_C.OPTIM.WARMUP_RECOUNT = True

_C.TRAIN = CN()
# Epochs between checkpoints; 0 keeps the last epoch only.
_C.TRAIN.CHECKPOINT_FREQ = 0
# Minutes between states that an unfinished run goes on from, also within an epoch; 0 saves one only
# when the process is told to end. They are removed when the run has finished.
_C.TRAIN.SAVE_MINUTES = 5.0
# Batches between log lines.
_C.TRAIN.PRINT_FREQ = 10
# Loader that sets the length of an epoch: train_x, train_u or smaller_one (TrainerXU).
_C.TRAIN.COUNT_ITER = "train_x"
# Where scalars go: tensorboard, wandb, mlflow, with commas between them; "" is nowhere.
_C.TRAIN.TRACKERS = "tensorboard"

_C.TEST = CN()
_C.TEST.EVALUATOR = "Classification"
_C.TEST.PER_CLASS_RESULT = False
# True: save the confusion matrix to OUTPUT_DIR/cmat.pt.
_C.TEST.COMPUTE_CMAT = False
# Whether a tested run keeps its logits (predictions.safetensors; docs/results.md): auto (up to
# 8 million values, which is images times classes), always or never.
_C.TEST.KEEP_PREDICTIONS = "auto"
# True: a test on all classes also says how base and new ones (the first and the second half) are
# told apart (docs/results.md).
_C.TEST.BASE_AND_NEW = False
# True: no test after training.
_C.TEST.NO_TEST = False
# test or val
_C.TEST.SPLIT = "test"
# last_step, best_val, or best_test: the test images choose the epoch (upstream does that where
# best_val finds no validation images)
_C.TEST.FINAL_MODEL = "last_step"

_C.TRAINER = CN()
_C.TRAINER.NAME = ""
_C.TRAINER.MCD = CN({"N_STEP_F": 4})
_C.TRAINER.MME = CN({"LMDA": 0.1})
_C.TRAINER.CDAC = CN(
    {
        "CLASS_LR_MULTI": 10,
        "RAMPUP_COEF": 30,
        "RAMPUP_ITRS": 1000,
        "TOPK_MATCH": 5,
        "P_THRESH": 0.95,
        "STRONG_TRANSFORMS": (),
    }
)
_C.TRAINER.SE = CN({"EMA_ALPHA": 0.999, "CONF_THRE": 0.95, "RAMPUP": 300})
_C.TRAINER.M3SDA = CN({"LMDA": 0.5, "N_STEP_F": 4})
_C.TRAINER.DAEL = CN({"WEIGHT_U": 0.5, "CONF_THRE": 0.95, "STRONG_TRANSFORMS": ()})
_C.TRAINER.DAELDG = CN({"WEIGHT_U": 0.5, "CONF_THRE": 0.95, "STRONG_TRANSFORMS": ()})
_C.TRAINER.CROSSGRAD = CN({"EPS_F": 1.0, "EPS_D": 1.0, "ALPHA_F": 0.5, "ALPHA_D": 0.5})
_C.TRAINER.DDAIG = CN(
    {
        "G_ARCH": "",
        "LMDA": 0.3,
        "CLAMP": False,
        "CLAMP_MIN": -1.0,
        "CLAMP_MAX": 1.0,
        "WARMUP": 0,
        "ALPHA": 0.5,
    }
)
_C.TRAINER.DOMAINMIX = CN({"TYPE": "crossdomain", "ALPHA": 1.0, "BETA": 1.0})
_C.TRAINER.ENTMIN = CN({"LMDA": 1e-3})
_C.TRAINER.MEANTEACHER = CN({"WEIGHT_U": 1.0, "EMA_ALPHA": 0.999, "RAMPUP": 5})
_C.TRAINER.MIXMATCH = CN({"WEIGHT_U": 100.0, "TEMP": 2.0, "MIXUP_BETA": 0.75, "RAMPUP": 20000})
_C.TRAINER.FIXMATCH = CN({"WEIGHT_U": 1.0, "CONF_THRE": 0.95, "STRONG_TRANSFORMS": ()})


def get_cfg_default() -> CN:
    """Return a fresh, unfrozen copy of the default configuration tree."""
    return _C.clone()
