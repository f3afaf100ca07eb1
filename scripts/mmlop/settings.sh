# shellcheck shell=bash disable=SC2034
TRAINER=MMLoP
TRAINS=yes

config_for() { # PROTOCOL DATASET SHOTS
    case $1 in
    base2new_*) echo vit_b16_base2new ;;
    xd_* | dg_*) echo vit_b16_cross_datasets ;;
    fewshot) echo vit_b16_fewshot ;;
    esac
}
