# Sourced by the other scripts: sets PYTHON to an interpreter that has the packages of requirements.txt.
#
#   1. WEAKTR_PYTHON=/path/to/python: used as it is, nothing is installed.
#   2. An active virtual environment (VIRTUAL_ENV): the packages are installed there.
#   3. Else .venv in the project's folder, made on first use.
#
# Packages are installed when requirements.txt changed since the last install that finished (stamp file in the
# environment); otherwise this takes no time. Needs Python 3.11 or 3.12, g++ (the CRF package is compiled) and
# a package index. Installing takes minutes.

weaktr_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

weaktr_missing() { echo "error: $1" >&2; exit 1; }

weaktr_supported() { "$1" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null; }

weaktr_find_python() {
    local name
    for name in python3 python3.11 python3.12 python; do
        if command -v "$name" >/dev/null && weaktr_supported "$name"; then
            PYTHON=$name
            return
        fi
    done
    weaktr_missing "Python 3.11 or 3.12 is needed, $(python3 --version 2>/dev/null || echo 'no python3') is here;\
 install one (Debian, Ubuntu: apt-get install python3.11 python3.11-venv python3.11-dev; conda: conda create -n weaktr python=3.11)"
}

weaktr_environment() {
    local venv stamp wanted
    if [ -n "${WEAKTR_PYTHON:-}" ]; then
        PYTHON=$WEAKTR_PYTHON
        weaktr_supported "$PYTHON" || weaktr_missing "WEAKTR_PYTHON=$PYTHON: not a Python 3.11 or 3.12; give another"
        return
    fi
    venv=${VIRTUAL_ENV:-$weaktr_root/.venv}
    if [ -z "${VIRTUAL_ENV:-}" ] && ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        weaktr_find_python
        "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null \
            || weaktr_missing "$PYTHON cannot make virtual environments; install its venv package (Debian, Ubuntu: apt-get install python3-venv)"
        echo "making the virtual environment $venv"
        "$PYTHON" -m venv --clear "$venv"
    fi
    PYTHON=$venv/bin/python
    weaktr_supported "$PYTHON" \
        || weaktr_missing "$venv has $("$PYTHON" --version 2>&1), Python 3.11 or 3.12 is needed; leave it (deactivate) or make another"
    stamp=$venv/.weaktr-requirements
    wanted=$("$PYTHON" -c 'import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest())' \
        "$weaktr_root/requirements.txt")
    [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && return
    if ! "$PYTHON" -c 'import pydensecrf.densecrf' 2>/dev/null; then  # the one package that is compiled
        command -v g++ >/dev/null \
            || weaktr_missing "g++ is needed to compile the CRF package; install it (Debian, Ubuntu: apt-get install g++)"
        "$PYTHON" -c 'import os, sys, sysconfig; sys.exit(not os.path.isfile(sysconfig.get_path("include") + "/Python.h"))' \
            || weaktr_missing "Python's headers are needed to compile the CRF package; install them (Debian, Ubuntu: apt-get install python3-dev)"
    fi
    rm -f "$stamp"
    echo "installing requirements.txt into $venv (takes minutes: PyTorch alone is some hundred MB, with CUDA some GB)"
    "$PYTHON" -m pip install --quiet --requirement "$weaktr_root/requirements.txt" \
        || weaktr_missing "the packages could not be installed (pip's message is above); mend that and run the same command again"
    echo "$wanted" >"$stamp.tmp" && mv "$stamp.tmp" "$stamp"
}

weaktr_environment
