# shellcheck shell=bash disable=SC2034
TRAINER=CoOp
TRAINS=yes

# 200 epochs; 50 on ImageNet and for 1 shot, 100 for 2 and 4 shots, as in the paper. Models for
# other data sets start at "a photo of a", as base-to-new ones do.
config_for() { # PROTOCOL DATASET SHOTS
    case $1/$2/$3 in
    base2new_*/imagenet/* | xd_*/* | dg_*/*) echo vit_b16_ep50_ctxv1 ;;
    base2new_*) echo vit_b16_ctxv1 ;;
    fewshot/imagenet/* | fewshot/*/1) echo vit_b16_ep50 ;;
    fewshot/*/[24]) echo vit_b16_ep100 ;;
    fewshot/*) echo vit_b16 ;;
    esac
}

variant_of() { # CFG DATASET SHOTS
    case $1/$2/$3 in
    vit_b32_fewshot/imagenet/* | vit_b32_fewshot/*/1) echo vit_b32_fewshot_ep50 ;;
    vit_b32_fewshot/*/[24]) echo vit_b32_fewshot_ep100 ;;
    *) echo "$1" ;;
    esac
}
