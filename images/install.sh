#!/bin/sh
# Both Dockerfiles run this script three times, in three layers:
#   install.sh packages        install the requirements of `python -m trainer` into /opt/venv ($TORCH_INDEX for torch)
#   install.sh fonts           install Debian's fonts-nanum, unless the base image has it or no mirror can be reached
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
fonts)
    quick="-o Acquire::Retries=0 -o Acquire::http::Timeout=20 -o Acquire::https::Timeout=20"
    if [ ! -e /usr/share/fonts/truetype/nanum/NanumGothic.ttf ]; then
        { apt-get $quick update -q && apt-get $quick install -q -y --no-install-recommends fonts-nanum; } >/dev/null ||
            echo "note: fonts-nanum cannot be installed; pictures use the font of noto-cjk-sans-otc" >&2
        rm -rf /var/lib/apt/lists/*
    fi
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
