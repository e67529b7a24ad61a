#!/usr/bin/env bash
# Make a base image without a registry: Debian with python3, from Debian's packages.
# usage: images/make-base.sh [NAME]        then: docker build --build-arg BASE_IMAGE=NAME …
# Needs mmdebstrap and docker. The script copies a CA bundle (SSL_CERT_FILE, else the host's) into the image. With it pip
# and apt can check certificates behind a proxy with its own CA.
set -euo pipefail
name=${1:-document-classifier-base:bookworm}
bundle=${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}
mmdebstrap --quiet --variant=minbase --include=python3,python3-venv,ca-certificates,fonts-nanum \
    --customize-hook="copy-in $bundle /etc/ssl/certs" bookworm - |
    docker import --change 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' - "$name"
