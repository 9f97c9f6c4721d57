#!/usr/bin/env bash
# Writes requirements/{cpu,cuda,dev}.txt from pyproject.toml and pins.in: `make lock` calls it.
#
# Every line is pinned and hashed. torch and what torch alone brings (CUDA's libraries, triton) are left out: the
# Makefile installs `torch==` first, with its dependencies, in whichever build the machine gets.
set -euo pipefail
cd "$(dirname "$0")/.."
uv=${UV:-uv}

compile() { # compile OUTPUT FBGEMM_PACKAGE EXTRA...
  local output=$1 fbgemm=$2 extras=() omit=(--no-emit-package torch) name
  shift 2
  for name in "$@"; do extras+=(--extra "$name"); done
  local override=()
  if [[ $fbgemm == fbgemm-gpu-cpu ]]; then
    override=(--override requirements/no-cuda-fbgemm.in)
    omit+=(--no-emit-package fbgemm-gpu)
  fi
  local pin
  pin=$(mktemp)
  echo "$fbgemm==1.8.0" > "$pin"
  local common=(pyproject.toml "${extras[@]}" -c requirements/pins.in -c "$pin"
                "${override[@]}" --universal --no-header --no-annotate --quiet)
  local brought='^(nvidia-[a-z0-9-]+|triton|cuda-[a-z]+)=='
  # dev.txt holds the tools alone, so that it fits beside either of the other two.
  [[ $output != */dev.txt ]] || for name in $(grep -oE '^[a-z0-9.-]+==' requirements/cpu.txt | sed 's/==$//'); do
    omit+=(--no-emit-package "$name")
  done
  for name in $("$uv" pip compile "${common[@]}" | grep -oE "$brought" | sed 's/==$//' | sort -u); do
    [[ $name == nvidia-ml-py ]] || omit+=(--no-emit-package "$name")
  done
  {
    echo "# Written by \`make lock\`; do not edit. Install torch first, then this with --no-deps."
    "$uv" pip compile "${common[@]}" "${omit[@]}" --generate-hashes
  } > "$output.new"
  mv "$output.new" "$output"
  rm -f "$pin"
}

compile requirements/cpu.txt fbgemm-gpu-cpu cpu
compile requirements/cuda.txt fbgemm-gpu cuda
compile requirements/dev.txt fbgemm-gpu-cpu cpu dev
