# shellcheck shell=bash disable=SC2034
TRAINER=LoRVP
TRAINS=yes

config_for() { # PROTOCOL DATASET SHOTS
    echo vit_b16_r4_ep20_batch32
}
