# %% [markdown]
# # Tutorial: from your own robot arm to a deployed policy
#
# An arm with two joints reaches for a target. Its motors may spend an effort of 150 an episode, and it may move fast in
# at most 1 step of an episode. We go the whole way: environment, wrappers, check, training that is interrupted,
# evaluation, one ONNX file, and a loop of 50 Hz that drives the arm with it.
#
# ## The environment
#
# Save as `arm.py`. The observation is a Dict, the cost has two entries, and `snapshot` and `restore` let a run that was
# killed go on in the middle of an episode.
#
# ```python
# --8<-- "examples/arm.py"
# ```
#
# ## Wrappers
#
# Wrappers of Gymnasium and of your own go around it in a function that makes the environment, which is registered with
# its time limit. Save as `wrapped_arm.py`. A wrapper may keep plain numbers and arrays; they are saved with the run.
#
# ```python
# --8<-- "examples/wrapped_arm.py"
# ```
#
# ## Check it before you train

# %%
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import onnxruntime

from saddlepoint import ALGD, ALGDConfig, CostBudget, TrainConfig, UserError, check_env, load_policy, train
from saddlepoint.cli import main as saddlepoint
from saddlepoint.types import EnvSetup

ENV = "wrapped_arm:WrappedArm-v0"
STEPS = 16_000
SECONDS = 10
BUDGETS = (CostBudget(150.0), CostBudget(1.0))  # effort, and steps that are too fast, an episode

try:
    check_env(ENV)
except UserError as error:
    print(error)

# %% [markdown]
# A Dict must be made one vector, and we ask for that: `flatten=True`, or `--flatten` on the command line.

# %%
print(check_env(EnvSetup(ENV, flatten=True)))

# %% [markdown]
# ## Train, stop, go on
#
# Angles, metres and radians a second have different sizes, so observations are normalised by running statistics
# (`normalise_observations`). The statistics belong to the run: evaluation, resume and export use the same ones.
#
# The budgets have no horizon of their own and take the time limit of the environment, 100 steps. Small networks are
# enough for six numbers, and faster.


# %%
def config(steps):
    return TrainConfig(
        env=ENV, env_kwargs={"friction": 2.0}, flatten=True, normalise_observations=True, total_steps=steps,
        warmup_steps=STEPS // 10, eval_every=STEPS // 4, threads=1, out=Path("runs/arm"),
    )  # fmt: skip


SMALL = ALGDConfig(critic_hidden=(64, 64), policy_hidden=(64, 64))
run = train(config(STEPS // 2), ALGD, SMALL, BUDGETS)

# %% [markdown]
# The run stopped half-way. It could as well have been killed: the newest checkpoint holds the learner, the replay, the
# random states and the arm in mid-episode. Resumed, it makes the same numbers as a run that was never stopped.

# %%
run = train(config(STEPS), ALGD, SMALL, BUDGETS, resume=True)

# %% [markdown]
# In a shell these two would be
#
# ```
# saddlepoint train algd --env wrapped_arm:WrappedArm-v0 --env-kwargs friction=2.0 --flatten --normalise-observations \
#     --cost-limit 150 1 --critic-hidden 64 64 --policy-hidden 64 64 \
#     --total-steps 8000 --warmup-steps 1600 --eval-every 4000 --out runs/arm
# saddlepoint train --resume runs/arm --total-steps 16000
# ```
#
# ## Evaluate
#
# Twenty episodes of each policy. The two constraints are counted apart.

# %%
saddlepoint(["evaluate", str(run), "--episodes", "20"])

# %% [markdown]
# Both budgets are kept in the mean, as they were not at step 4,000. But the return has not risen since: in 16,000 steps
# this arm has learnt to save effort, hardly to reach. That is what [Tuning](tuning.md#lambda-is-too-high) calls a lambda
# that is too high; more steps, a lower `multiplier_rate` or a larger budget are what to try next. What follows does not
# depend on it.
#
# ## One file for the robot
#
# The file holds the normalisation, the whole denoising chain and the bounds of the action. It is compared with
# PyTorch's policy before it is written. The robot needs `onnxruntime` and `numpy`, nothing of ours.

# %%
saddlepoint(["export", str(run), "arm.onnx"])

# %% [markdown]
# ## The loop
#
# Fifty times a second: read the sensors, ask for an action, write it. The file's second output, `valid`, is false where
# a sensor gave NaN or infinity; then the last action is held. Here a simulated arm stands for the real one, and the
# encoder of the first joint fails for half a second.

# %%
PERIOD = 1 / 50
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession("arm.onnx", options)


def flat(parts):
    """The vector that the policy was trained on: the parts in the order of their names."""
    return np.concatenate([parts[name] for name in sorted(parts)]).astype(np.float32)


env = gym.make(ENV, friction=2.0)
parts, _ = env.reset(seed=7)
action, held, spent, effort = np.zeros(2, np.float32), 0, [], 0.0
tick = time.perf_counter()
for i in range(50 * SECONDS):
    if 100 <= i < 125:
        parts["angles"][0] = np.nan
    begun = time.perf_counter()
    new, valid = session.run(["action", "valid"], {"observation": flat(parts)[None]})
    if valid[0]:
        action = new[0]
    held += not valid[0]
    spent.append(time.perf_counter() - begun)
    parts, _, _, truncated, info = env.step(action)
    effort += info["cost"][0]
    if truncated:
        parts, _ = env.reset()
    tick += PERIOD
    time.sleep(max(0.0, tick - time.perf_counter()))

median, worst = 1000 * np.median(spent), 1000 * max(spent)
print(f"{len(spent)} actions, {held} of them held; {median:.2f} ms each in the median, {worst:.2f} ms at worst, of {1000 * PERIOD:.0f} ms")
print(f"effort of an episode: {effort / (len(spent) / 100):.1f} of 150")

# %% [markdown]
# The same in Python, without the file: `load_policy` brings the policy, and `on_nan="hold"` holds the last action.

# %%
policy = load_policy(run)
parts, _ = env.reset(seed=7)
first = session.run(["action"], {"observation": flat(parts)[None]})[0][0]
print("ONNX and PyTorch differ by", np.abs(policy.act(flat(parts)) - first).max())

# %% [markdown]
# [Deploy](deploy.md) has the rest: sampled policies, the dial between careful and greedy, and the metadata of the file.
