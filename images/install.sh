#!/bin/sh
# What both Dockerfiles run, in a layer of its own each:
#   install.sh packages        everything that `python -m trainer` needs, into /opt/venv ($TORCH_INDEX for torch)
#   install.sh weights NAMES   ImageNet weights by timm's names, comma-separated, into /opt/weights (needs a network)
set -eu
here=$(dirname "$0")

case $1 in
packages)
    # What pip keeps belongs into a cache that the builder mounts, else nowhere: it would stay in the layer.
    grep -q ' /root/.cache/pip ' /proc/self/mountinfo || export PIP_NO_CACHE_DIR=1
    base=$(command -v python3)
    "$base" -m venv /opt/venv
    if [ -n "${TORCH_INDEX:-}" ]; then
        python -m pip install -q -c "$here/constraints.txt" --index-url "$TORCH_INDEX" torch torchvision
    fi
    python -m pip install -q -c "$here/constraints.txt" -r "$here/requirements.txt"
    # What an image does not need, it should not have; some bases bring a pip of their own.
    python -m pip uninstall -q -y pip
    "$base" -m pip uninstall -q -y pip 2>/dev/null || true
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
