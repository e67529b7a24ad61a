#!/bin/sh
# What both Dockerfiles run, in a layer of its own each:
#   install.sh packages        everything that `python -m trainer` needs, into /opt/venv ($TORCH_INDEX for torch)
#   install.sh weights NAMES   ImageNet weights by timm's names, comma-separated, into /opt/weights (needs a network)
set -eu
here=$(dirname "$0")

case $1 in
packages)
    python3 -m venv /opt/venv
    if [ -n "${TORCH_INDEX:-}" ]; then
        python -m pip install -q -c "$here/constraints.txt" --index-url "$TORCH_INDEX" torch torchvision
    fi
    python -m pip install -q -c "$here/constraints.txt" -r "$here/requirements.txt"
    python -m pip uninstall -q -y pip # what an image does not need, it should not have
    rm -rf "$here"
    ;;
weights)
    if [ -n "${2:-}" ]; then
        HF_HUB_CACHE=/opt/weights python -c \
            "import sys, timm; [timm.create_model(name, pretrained=True) for name in sys.argv[1].split(',')]" "$2"
    fi
    chmod -R a+rX /opt/weights
    ;;
esac
