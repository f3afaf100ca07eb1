"""Default configuration tree: the keys and values of Dassl 0.6.3, and a few of our own.

Our own are INPUT.EXIF, INPUT.SEEDED_VIEWS, DATALOADER.CACHE, CACHE_MB and TRANSFORM_DEVICE,
TRAIN.SAVE_MINUTES, TEST.KEEP_PREDICTIONS and BASE_AND_NEW. Read them with
``dassl.config.optional``, since a configuration tree made elsewhere lacks them.
"""

from __future__ import annotations

from .node import CfgNode as CN

_C = CN()

#: version of the tree in Dassl; nothing reads it
_C.VERSION = 1
#: directory for logs and checkpoints
_C.OUTPUT_DIR = "./output"
#: directory searched for checkpoints to resume from, instead of OUTPUT_DIR
_C.RESUME = ""
#: seeding happens for values >= 0; a negative value leaves the generators as they are
_C.SEED = -1
#: False: the CPU, whatever DEVICE says
_C.USE_CUDA = True
#: cpu, cuda or one of several GPUs as cuda:1; empty: a GPU if there is one, else the CPU
_C.DEVICE = ""
#: False: less is written to the log while a trainer is built
_C.VERBOSE = True

_C.INPUT = CN()
#: height and width of the images that the model gets, in pixels
_C.INPUT.SIZE = (224, 224)
#: bilinear, bicubic or nearest
_C.INPUT.INTERPOLATION = "bilinear"
#: names of training transforms, see dassl.data.transforms.AVAI_CHOICES
_C.INPUT.TRANSFORMS = ()
#: True: images stay PIL images
_C.INPUT.NO_TRANSFORM = False
#: True: a training image's view follows from SEED, epoch and image alone (docs/performance.md)
_C.INPUT.SEEDED_VIEWS = False
#: True: photos are turned upright as their EXIF orientation says, before any transform
_C.INPUT.EXIF = False
#: mean of each colour channel that is subtracted, for values from 0 to 1
_C.INPUT.PIXEL_MEAN = [0.485, 0.456, 0.406]
#: standard deviation of each colour channel that is divided by
_C.INPUT.PIXEL_STD = [0.229, 0.224, 0.225]
#: pixels around the image for random_crop
_C.INPUT.CROP_PADDING = 4
#: smallest and largest share of the area for random_resized_crop
_C.INPUT.RRCROP_SCALE = (0.08, 1.0)
#: number of squares that cutout blanks
_C.INPUT.CUTOUT_N = 1
#: side of the squares that cutout blanks, in pixels
_C.INPUT.CUTOUT_LEN = 16
#: mean of gaussian_noise
_C.INPUT.GN_MEAN = 0.0
#: standard deviation of gaussian_noise
_C.INPUT.GN_STD = 0.15
#: operations per image of randaugment
_C.INPUT.RANDAUGMENT_N = 2
#: strength of randaugment, from 0 to 30
_C.INPUT.RANDAUGMENT_M = 10
#: brightness of colorjitter, as in torchvision
_C.INPUT.COLORJITTER_B = 0.4
#: contrast of colorjitter
_C.INPUT.COLORJITTER_C = 0.4
#: saturation of colorjitter
_C.INPUT.COLORJITTER_S = 0.4
#: hue of colorjitter
_C.INPUT.COLORJITTER_H = 0.1
#: probability of randomgrayscale
_C.INPUT.RGS_P = 0.2
#: probability of gaussian_blur
_C.INPUT.GB_P = 0.5
#: side of the kernel of gaussian_blur, in pixels
_C.INPUT.GB_K = 21

_C.DATASET = CN()
#: folder that holds all data sets
_C.DATASET.ROOT = ""
#: registry name of the data set (python train.py --list datasets)
_C.DATASET.NAME = ""
#: domains to train on, for data sets of one's own that have several
_C.DATASET.SOURCE_DOMAINS = ()
#: domains to test on, for data sets of one's own that have several
_C.DATASET.TARGET_DOMAINS = ()
#: labelled images, for semi-supervised data sets of one's own
_C.DATASET.NUM_LABELED = -1
#: training images per class; < 1 means all
_C.DATASET.NUM_SHOTS = -1
#: share for validation, for data sets of one's own written for Dassl
_C.DATASET.VAL_PERCENT = 0.1
#: for config files of Dassl; nothing here reads it
_C.DATASET.STL10_FOLD = -1
#: for config files of Dassl; nothing here reads it
_C.DATASET.CIFAR_C_TYPE = ""
#: for config files of Dassl; nothing here reads it
_C.DATASET.CIFAR_C_LEVEL = 1
#: True: labelled images count as unlabelled ones too, in data sets written for Dassl
_C.DATASET.ALL_AS_UNLABELED = False

_C.DATALOADER = CN()
#: worker processes that load images; 0 loads them in the process itself
_C.DATALOADER.NUM_WORKERS = 4
#: augmented views per training image
_C.DATALOADER.K_TRANSFORMS = 1
#: True: items also hold img0, the image without augmentation
_C.DATALOADER.RETURN_IMG0 = False
#: training images decoded once, test images also cropped once, and kept below the folder
#: DASSL_CACHE (~/.cache/dassl); docs/performance.md. exact: batches are as without, to the bit;
#: fast: to about a grey level in training, to rounding in tests; none: every image is decoded each
#: time
_C.DATALOADER.CACHE = "exact"
#: what that folder may hold in all, in 10^6 bytes; images that take more are decoded each time
_C.DATALOADER.CACHE_MB = 10000
#: where training images are augmented; "cuda" needs CACHE "fast", and no worker processes are used
_C.DATALOADER.TRANSFORM_DEVICE = "cpu"
#: False: the last batch of labelled images is trained on although it may have fewer images
_C.DATALOADER.DROP_LAST = True
_C.DATALOADER.TRAIN_X = CN()
#: order of the training images: one of dassl.data.samplers
_C.DATALOADER.TRAIN_X.SAMPLER = "RandomSampler"
#: training images per step
_C.DATALOADER.TRAIN_X.BATCH_SIZE = 32
#: domains per batch for samplers of domains; 0 for all
_C.DATALOADER.TRAIN_X.N_DOMAIN = 0
#: images per class in a batch for RandomClassSampler
_C.DATALOADER.TRAIN_X.N_INS = 16
_C.DATALOADER.TRAIN_U = CN()
#: True: the four keys below are taken from TRAIN_X
_C.DATALOADER.TRAIN_U.SAME_AS_X = True
#: as TRAIN_X.SAMPLER, for unlabelled images
_C.DATALOADER.TRAIN_U.SAMPLER = "RandomSampler"
#: as TRAIN_X.BATCH_SIZE, for unlabelled images
_C.DATALOADER.TRAIN_U.BATCH_SIZE = 32
#: as TRAIN_X.N_DOMAIN, for unlabelled images
_C.DATALOADER.TRAIN_U.N_DOMAIN = 0
#: as TRAIN_X.N_INS, for unlabelled images
_C.DATALOADER.TRAIN_U.N_INS = 16
_C.DATALOADER.TEST = CN()
#: order of the test images
_C.DATALOADER.TEST.SAMPLER = "SequentialSampler"
#: test images that are encoded at once
_C.DATALOADER.TEST.BATCH_SIZE = 32

_C.MODEL = CN()
#: weights loaded before training (same architecture)
_C.MODEL.INIT_WEIGHTS = ""
_C.MODEL.BACKBONE = CN()
#: CLIP by name or file (python train.py --list backbones); docs/weights.md
_C.MODEL.BACKBONE.NAME = ""
#: for trainers of one's own on networks of dassl.modeling: published weights
_C.MODEL.BACKBONE.PRETRAINED = True
_C.MODEL.HEAD = CN()
#: for trainers of one's own: a head of dassl.modeling behind the backbone
_C.MODEL.HEAD.NAME = ""
#: widths of the head's hidden layers
_C.MODEL.HEAD.HIDDEN_LAYERS = ()
#: activation between the head's layers
_C.MODEL.HEAD.ACTIVATION = "relu"
#: batch normalisation in the head
_C.MODEL.HEAD.BN = True
#: dropout in the head, a share
_C.MODEL.HEAD.DROPOUT = 0.0

_C.OPTIM = CN()
#: optimiser: one of dassl.optim.AVAI_OPTIMS
_C.OPTIM.NAME = "adam"
#: learning rate at its highest
_C.OPTIM.LR = 0.0003
#: weight decay, as the optimiser takes it
_C.OPTIM.WEIGHT_DECAY = 5e-4
#: momentum of sgd and rmsprop
_C.OPTIM.MOMENTUM = 0.9
# A float, so that both 0 and 0.1 may be merged.
#: dampening of the momentum in sgd
_C.OPTIM.SGD_DAMPNING = 0.0
#: Nesterov's momentum in sgd
_C.OPTIM.SGD_NESTEROV = False
#: smoothing constant of rmsprop
_C.OPTIM.RMSPROP_ALPHA = 0.99
#: decay of the mean of gradients in adam, amsgrad, adamw and radam
_C.OPTIM.ADAM_BETA1 = 0.9
#: decay of the mean of squared gradients in the same
_C.OPTIM.ADAM_BETA2 = 0.999
#: term in the denominator of adam, amsgrad, adamw and radam
_C.OPTIM.ADAM_EPS = 1e-8
#: True: children named in NEW_LAYERS learn at LR, all others at LR * BASE_LR_MULT
_C.OPTIM.STAGED_LR = False
#: names of the children that learn at LR with STAGED_LR
_C.OPTIM.NEW_LAYERS = ()
#: factor of the rate of all others with STAGED_LR
_C.OPTIM.BASE_LR_MULT = 0.1
#: single_step, multi_step or cosine
_C.OPTIM.LR_SCHEDULER = "single_step"
#: epochs; a last value <= 0 means MAX_EPOCH for single_step
_C.OPTIM.STEPSIZE = (-1,)
#: factor of the rate at each of STEPSIZE, for single_step and multi_step
_C.OPTIM.GAMMA = 0.1
#: how often the learning rate changes: epoch, or batch; lengths of the schedule (STEPSIZE,
#: WARMUP_EPOCH) are in epochs in any case
_C.OPTIM.SCHEDULE_PER = "epoch"
#: where cosine ends
_C.OPTIM.MIN_LR = 0.0
#: epochs of the training
_C.OPTIM.MAX_EPOCH = 10
#: training steps of the run, whose last epoch is cut short; 0: MAX_EPOCH epochs
_C.OPTIM.MAX_ITERATIONS = 0
#: True: MAX_ITERATIONS is for each shot (times DATASET.NUM_SHOTS)
_C.OPTIM.ITERATIONS_PER_SHOT = False
#: epochs of warm-up; <= 0 means none
_C.OPTIM.WARMUP_EPOCH = -1
#: linear or constant
_C.OPTIM.WARMUP_TYPE = "linear"
#: rate of a constant warm-up
_C.OPTIM.WARMUP_CONS_LR = 1e-5
#: rate that a linear warm-up starts with
_C.OPTIM.WARMUP_MIN_LR = 1e-5
#: True: the schedule after the warm-up starts at its own epoch 0
_C.OPTIM.WARMUP_RECOUNT = True

_C.TRAIN = CN()
#: epochs between checkpoints; 0 keeps the last epoch only
_C.TRAIN.CHECKPOINT_FREQ = 0
#: minutes between states that an unfinished run resumes from, also within an epoch; 0 saves one
#: only when the process is told to end. They are removed when the run has finished
_C.TRAIN.SAVE_MINUTES = 5.0
#: batches between log lines
_C.TRAIN.PRINT_FREQ = 10
#: loader that sets the length of an epoch: train_x, train_u or smaller_one (TrainerXU)
_C.TRAIN.COUNT_ITER = "train_x"
#: where scalars go: tensorboard, wandb, mlflow, with commas between them; "" is nowhere
_C.TRAIN.TRACKERS = "tensorboard"

_C.TEST = CN()
#: registry name of what computes metrics
_C.TEST.EVALUATOR = "Classification"
#: True: print the accuracy of every class
_C.TEST.PER_CLASS_RESULT = False
#: True: save the confusion matrix to OUTPUT_DIR/cmat.pt
_C.TEST.COMPUTE_CMAT = False
#: whether a tested run keeps its logits (predictions.safetensors; docs/results.md): auto (up to
#: 8 million values, which is images times classes), always or never
_C.TEST.KEEP_PREDICTIONS = "auto"
#: True: a test on all classes also says how base and new ones (the first and the second half) are
#: told apart (docs/results.md)
_C.TEST.BASE_AND_NEW = False
#: True: no test after training
_C.TEST.NO_TEST = False
#: test or val
_C.TEST.SPLIT = "test"
#: last_step, best_val, or best_test: the test images choose the epoch (upstream does that where
#: best_val finds no validation images)
_C.TEST.FINAL_MODEL = "last_step"

_C.TRAINER = CN()
#: registry name of the method (python train.py --list methods)
_C.TRAINER.NAME = ""
# Dassl's own trainers, so that its config files can be read.
#: for config files of Dassl; nothing here reads it
_C.TRAINER.MCD = CN({"N_STEP_F": 4})
#: for config files of Dassl; nothing here reads it
_C.TRAINER.MME = CN({"LMDA": 0.1})
#: for config files of Dassl; nothing here reads it
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
#: for config files of Dassl; nothing here reads it
_C.TRAINER.SE = CN({"EMA_ALPHA": 0.999, "CONF_THRE": 0.95, "RAMPUP": 300})
#: for config files of Dassl; nothing here reads it
_C.TRAINER.M3SDA = CN({"LMDA": 0.5, "N_STEP_F": 4})
#: for config files of Dassl; nothing here reads it
_C.TRAINER.DAEL = CN({"WEIGHT_U": 0.5, "CONF_THRE": 0.95, "STRONG_TRANSFORMS": ()})
#: for config files of Dassl; nothing here reads it
_C.TRAINER.DAELDG = CN({"WEIGHT_U": 0.5, "CONF_THRE": 0.95, "STRONG_TRANSFORMS": ()})
#: for config files of Dassl; nothing here reads it
_C.TRAINER.CROSSGRAD = CN({"EPS_F": 1.0, "EPS_D": 1.0, "ALPHA_F": 0.5, "ALPHA_D": 0.5})
#: for config files of Dassl; nothing here reads it
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
#: for config files of Dassl; nothing here reads it
_C.TRAINER.DOMAINMIX = CN({"TYPE": "crossdomain", "ALPHA": 1.0, "BETA": 1.0})
#: for config files of Dassl; nothing here reads it
_C.TRAINER.ENTMIN = CN({"LMDA": 1e-3})
#: for config files of Dassl; nothing here reads it
_C.TRAINER.MEANTEACHER = CN({"WEIGHT_U": 1.0, "EMA_ALPHA": 0.999, "RAMPUP": 5})
#: for config files of Dassl; nothing here reads it
_C.TRAINER.MIXMATCH = CN({"WEIGHT_U": 100.0, "TEMP": 2.0, "MIXUP_BETA": 0.75, "RAMPUP": 20000})
#: for config files of Dassl; nothing here reads it
_C.TRAINER.FIXMATCH = CN({"WEIGHT_U": 1.0, "CONF_THRE": 0.95, "STRONG_TRANSFORMS": ()})


def get_cfg_default() -> CN:
    """Return a fresh, unfrozen copy of the default configuration tree."""
    return _C.clone()
