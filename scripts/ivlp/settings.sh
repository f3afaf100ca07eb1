# shellcheck shell=bash disable=SC2034
TRAINER=IVLP
TRAINS=yes

config_for() { # PROTOCOL DATASET SHOTS
    echo vit_b16_c2_ep5_batch4_2+2ctx
}
