# shellcheck shell=bash disable=SC2034
TRAINER=PromptSRC
TRAINS=yes

# In few-shot learning the fine-grained data sets average later epochs.
config_for() { # PROTOCOL DATASET SHOTS
    case $1/$2 in
    base2new_*) echo vit_b16_c4_ep20_batch4_4+4ctx ;;
    xd_* | dg_*) echo vit_b16_c4_ep20_batch4_4+4ctx_cross_datasets ;;
    fewshot/stanford_cars | fewshot/oxford_flowers | fewshot/fgvc_aircraft | fewshot/dtd | \
        fewshot/eurosat) echo vit_b16_c4_ep50_batch4_4+4ctx_few_shot_gpa45 ;;
    fewshot/*) echo vit_b16_c4_ep50_batch4_4+4ctx_few_shot ;;
    esac
}

variant_of() { # CFG DATASET SHOTS
    case $1/$2 in
    vit_b32_fewshot/stanford_cars | vit_b32_fewshot/oxford_flowers | \
        vit_b32_fewshot/fgvc_aircraft | vit_b32_fewshot/dtd | vit_b32_fewshot/eurosat)
        echo vit_b32_fewshot_gpa45 ;;
    *) echo "$1" ;;
    esac
}
