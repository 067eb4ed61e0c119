#!/usr/bin/env bash
# Sourced by the scripts beside it: makes the environment .venv, once for each state of pyproject.toml.
#   source scripts/environment EXTRAS [GROUP]
# Needs Python 3.11 or newer as python3 (or as $PYTHON) and a package index; nothing else.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "finwidth needs Python 3.11 or newer; $python is $("$python" --version). Set PYTHON to a newer one." >&2
  exit 1
}
stamp=$root/.venv/stamp-${1//,/-}${2:+-$2}
if ! cmp -s "$root/pyproject.toml" "$stamp"; then
  [ -x "$root/.venv/bin/python" ] || "$python" -m venv "$root/.venv"
  "$root/.venv/bin/python" -m pip install --quiet --upgrade "pip>=25.1"
  "$root/.venv/bin/python" -m pip install --quiet --editable "$root[$1]" ${2:+--group "$root/pyproject.toml:$2"}
  cp "$root/pyproject.toml" "$stamp"
fi
