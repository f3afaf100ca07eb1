# shellcheck shell=bash disable=SC2034
TRAINER=MPL
TRAINS=yes

config_for() { # PROTOCOL DATASET SHOTS
    case $1 in
    xd_* | dg_*) echo vit_b16_c1_add2_rm1_cross_datasets ;;
    *) echo vit_b16_c1_add2_rm1 ;;
    esac
}
