#!/usr/bin/env bash
# From a wheel to a policy in a 50 Hz loop, and an algorithm of one's own, without reading source.
#
#   examples/newcomer.sh [FOLDER]                      in a checkout: builds the wheel, works in a new folder
#   WHEEL=saddlepoint-0.1.0-py3-none-any.whl newcomer.sh [FOLDER]
#
# STEPS=20000 trains in earnest; the default only shows the way. PACKAGES=.../site-packages takes what the wheel needs
# from another environment, so that no network is needed.
set -euo pipefail
python=${PYTHON:-python3} steps=${STEPS:-2000} flags=${FLAGS:-}
here=$(cd "$(dirname "$0")/.." && pwd)
home=$(realpath "${1:-$(mktemp -d)}")
mkdir -p "$home/work"
say() { printf '\n== %s\n' "$*"; }

say "Install into a new environment: $home/venv"
"$python" -m venv ${PACKAGES:+--without-pip} "$home/venv"
if [ -z "${WHEEL:-}" ]; then # built from a copy, because setuptools leaves files behind
  mkdir -p "$home/source/benchmarks"
  (cd "$here" && cp -r pyproject.toml setup.py README.md LICENSE src examples models "$home/source" && cp -r benchmarks/sweeps "$home/source/benchmarks")
  "$python" -m pip wheel --quiet --no-deps ${PACKAGES:+--no-build-isolation --no-index} --wheel-dir "$home/dist" "$home/source"
  WHEEL=$(echo "$home"/dist/*.whl)
fi
if [ -n "${PACKAGES:-}" ]; then
  echo "$PACKAGES" > "$(echo "$home"/venv/lib/python*/site-packages)/packages.pth"
  "$home/venv/bin/python" -m pip install --quiet --no-deps --no-index "$WHEEL"
else
  "$home/venv/bin/python" -m pip install --quiet "$WHEEL[report,export]"
fi
export PATH="$home/venv/bin:$PATH"
unset PYTHONPATH
cd "$home/work"
saddlepoint --version

say "An environment of one's own: a module in the working directory"
cat > cart.py << 'EOF'
import gymnasium as gym
import numpy as np


class Cart(gym.Env):
    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.x = self.np_random.normal(0, 0.1, 2).astype(np.float32)
        return self.x.copy(), {}

    def step(self, action):
        self.x += 0.1 * np.float32([self.x[1], action[0]])
        too_fast = abs(self.x[1]) > 1
        return self.x.copy(), float(self.x[1]), False, False, {"cost": float(too_fast)}


gym.register("Cart-v0", Cart, max_episode_steps=100)
EOF
python -c 'from saddlepoint import check_env; print(check_env("cart:Cart-v0"))'

say "Train, and go on where the run stopped"
# shellcheck disable=SC2086
saddlepoint train algd --env cart:Cart-v0 --cost-limit 10 --normalise-observations --total-steps "$steps" $flags --out runs/cart
saddlepoint train --resume runs/cart --total-steps $((steps + steps / 2))

say "Evaluate: the newest policy, and the best that was within the budget"
saddlepoint evaluate runs/cart
if [ -d runs/cart/best ]; then saddlepoint evaluate runs/cart --checkpoint best; else echo "no evaluation was within the budget"; fi

say "Export, and control at 50 Hz with the file alone"
saddlepoint export runs/cart policy.onnx
cat > loop.py << 'EOF'
import time

import numpy as np
import onnxruntime
from cart import Cart  # here stands your robot

HERTZ, SECONDS = 50, 1.0
session = onnxruntime.InferenceSession("policy.onnx")
robot = Cart()
observation, _ = robot.reset(seed=0)
action, held, slowest = np.zeros(1, np.float32), 0, 0.0
tick = time.perf_counter()
for step in range(int(HERTZ * SECONDS)):
    seen = np.full(2, np.nan, np.float32) if step % 20 == 19 else observation  # a sensor that fails now and then
    began = time.perf_counter()
    proposed, valid = session.run(["action", "valid"], {"observation": seen[None]})
    slowest = max(slowest, time.perf_counter() - began)
    if valid[0]:
        action = proposed[0]
    else:
        held += 1  # NaN in, NaN out, and `valid` says so: the last action is held
    assert robot.action_space.contains(action)
    observation, *_ = robot.step(action)
    tick += 1 / HERTZ
    time.sleep(max(0.0, tick - time.perf_counter()))
print(f"{step + 1} actions at {HERTZ} Hz, the slowest in {1000 * slowest:.2f} ms; {held} held because the observation was not finite")
EOF
python loop.py

say "An algorithm of one's own, from the examples that come with the package"
saddlepoint examples own_algorithm.py
# shellcheck disable=SC2086
saddlepoint train own_algorithm:td3-lag --env cart:Cart-v0 --cost-limit 10 --total-steps "$steps" $flags --out runs/own

say "One page that compares the two"
saddlepoint report runs/cart runs/own --out report.html
echo "look at $home/work/report.html"
