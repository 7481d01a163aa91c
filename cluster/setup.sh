#!/usr/bin/env bash
# Makes .venv from a complete lock. Idempotent: a second call returns at once.
#   cluster/setup.sh               the GPU lock where an NVIDIA GPU answers, the CPU lock elsewhere
#   PROFILE=cpu cluster/setup.sh   the lock named
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() { echo "setup: $*" >&2; exit 1; }

profile=${PROFILE:-}
if [ -z "$profile" ]; then
  if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1; then profile=gpu; else profile=cpu; fi
fi
lock=cluster/requirements/$profile.txt
[ -f "$lock" ] || fail "PROFILE=$profile has no lock; there are: $(cd cluster/requirements && echo *.txt)"

# The stamp is written last, so an interrupted set-up is done again.
stamp=.venv/.setup
wanted=$(cat "$lock" cluster/torchvision_shim.py cluster/setup.sh | sha256sum | cut -d' ' -f1)
[ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && exit 0

python=${PYTHON:-python3.11}
command -v "$python" >/dev/null 2>&1 || fail "needs Python 3.11 ($python was not found); name another with PYTHON="
.venv/bin/python -m pip --version >/dev/null 2>&1 || "$python" -m venv .venv || fail "could not make .venv (is the venv module installed, and the folder writable?)"

echo "setup: installing $lock into .venv (a few minutes the first time)"
.venv/bin/python -m pip install --quiet --no-deps --disable-pip-version-check -r "$lock" 2> .venv/setup.log \
  || { tail -n 5 .venv/setup.log >&2; fail "pip could not install $lock (network, disk space?); the whole log is in .venv/setup.log"; }

# torchvision's compiled half does not load beside a CPU torch; see cluster/torchvision_shim.py. And this
# folder goes on the path: an editable install would fetch build tools for the same effect.
site=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
cp cluster/torchvision_shim.py "$site/torchvision_shim.py"
echo 'import torchvision_shim; torchvision_shim.install()' > "$site/torchvision_shim.pth"
pwd > "$site/safeclip.pth"

.venv/bin/python -c 'import torch, torchvision' || fail "torch and torchvision do not import; remove .venv and run cluster/setup.sh again"
echo "$wanted" > "$stamp"
echo "setup: done"
