# shellcheck shell=bash disable=SC2034
# Upstream's name of IVLP with prompts in the text encoder only.
TRAINER=IVLP
TRAINS=yes
TINY=tiny_language_only

config_for() { # PROTOCOL DATASET SHOTS
    echo vit_b16_c4_ep5_batch4_language_only
}

variant_of() { # CFG DATASET SHOTS
    case $1 in
    vit_b32_fewshot) echo vit_b32_fewshot_language_only ;;
    *) echo "$1" ;;
    esac
}
