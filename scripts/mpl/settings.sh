# shellcheck shell=bash disable=SC2034
TRAINER=MPL
TRAINS=yes

config_for() { # PROTOCOL DATASET SHOTS
    echo vit_b16_c1_add2_rm1
}
