# shellcheck shell=bash disable=SC2034
TRAINER=CoCoOp
TRAINS=yes

config_for() { # PROTOCOL DATASET SHOTS
    echo vit_b16_c4_ep10_batch1_ctxv1
}
