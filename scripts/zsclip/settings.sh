# shellcheck shell=bash disable=SC2034
TRAINER=ZeroshotCLIP
TRAINS=no # nothing to train: every protocol only tests

config_for() { # PROTOCOL DATASET SHOTS
    echo vit_b16
}
