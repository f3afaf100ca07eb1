# shellcheck shell=bash disable=SC2034
TRAINER=MaPLe
TRAINS=yes

config_for() { # PROTOCOL DATASET SHOTS
    case $1 in
    xd_* | dg_*) echo vit_b16_c2_ep2_batch4_2ctx_cross_datasets ;;
    *) echo vit_b16_c2_ep5_batch4_2ctx ;;
    esac
}
