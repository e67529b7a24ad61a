#!/bin/sh
# Both Dockerfiles run this script twice, in two layers:
#   install.sh packages        install the requirements of `python -m trainer` into /opt/venv ($TORCH_INDEX for torch)
#   install.sh weights NAMES   download ImageNet weights into /opt/weights; NAMES are timm names with commas
set -eu
here=$(dirname "$0")

case $1 in
packages)
    # Use pip's cache only if the builder mounts one. Otherwise the cache would stay in the layer.
    grep -q ' /root/.cache/pip ' /proc/self/mountinfo || export PIP_NO_CACHE_DIR=1
    base=$(command -v python3)
    "$base" -m venv /opt/venv
    if [ -n "${TORCH_INDEX:-}" ]; then
        python -m pip install -q -c "$here/constraints.txt" --index-url "$TORCH_INDEX" torch torchvision
    fi
    python -m pip install -q -c "$here/constraints.txt" -r "$here/requirements.txt"
    # The image does not need pip after this. Some base images have a second pip.
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
