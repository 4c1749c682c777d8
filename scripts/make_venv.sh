#!/bin/sh
# Make a virtual environment: make_venv.sh PYTHON FOLDER.
# Debian and Ubuntu ship Python without its venv module; it is installed where that is allowed.
set -eu
python=$1
folder=$2
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "lipdet needs Python 3.11 or newer; call make PYTHON=python3.12, say." >&2
    exit 2
fi
if ! "$python" -c 'import ensurepip' 2>/dev/null; then
    version=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "Python's venv module is missing; sudo apt-get install $version, then try again." >&2
        exit 2
    fi
    apt-get update -qq && apt-get install -qq -y "$version"
fi
"$python" -m venv "$folder"
