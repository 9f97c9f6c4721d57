#!/usr/bin/env bash
# Installs locks: install.sh PYTHON cpu|cuda|dev [LOCK]. pip refuses every file whose hash the lock does not state.
# With LOCK, the device's torch and that file are installed, without recmtl.
#
# torch has two builds of one version. The public index has the one for CUDA; the CPU build (torch-cpu.txt) is a version
# of its own, found where pip is told to look: an extra index, or a folder. So a CPU machine asks pip first, and takes
# the public build (torch-cuda.txt) where there is no other. One line with the hashes of both would not do: pip prefers
# a file whose hash an index states, so it would take the CUDA build, without the libraries it needs.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$PWD/$1
[[ $1 != /* ]] || python=$1
what=$2
lock=${3:-}

pip() { "$python" -m pip --disable-pip-version-check "$@"; }

install() { # install LOCK...
  local files=() name
  echo "installing $*"
  for name in "$@"; do files+=(-r "$name"); done
  pip install --quiet --no-deps --require-hashes "${files[@]}"
}

if [[ $what == dev ]]; then
  install requirements/dev.txt
  exit
fi

torch=requirements/torch-cuda.txt
other=fbgemm-gpu-cpu
if [[ $what == cpu ]]; then
  other=fbgemm-gpu
  build=$(sed -nE 's/^torch==([^ ;]+).*/\1/p' requirements/torch-cpu.txt)
  found=$(pip index versions torch 2>&1) || { echo "$found"; echo "pip could not look up torch's versions"; exit 1; } >&2
  if tr -s ', ' '\n' <<< "$found" | grep -qxF "$build"; then torch=requirements/torch-cpu.txt; fi
fi

if [[ $lock ]]; then
  install "$torch" "$lock"
  exit
fi

# Both packages of fbgemm hold the same files, and either build of torch satisfies pip: what is there goes first.
if pip show --quiet "$other" 2> /dev/null; then
  pip uninstall --quiet --yes fbgemm-gpu fbgemm-gpu-cpu torch
fi

install "$torch" "requirements/$what.txt"
pip install --quiet --no-deps --no-build-isolation -e .
