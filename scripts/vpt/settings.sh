# shellcheck shell=bash disable=SC2034
TRAINER=VPT
TRAINS=yes

config_for() { # PROTOCOL DATASET SHOTS
    echo vit_b16_c8_ep5_batch4
}
