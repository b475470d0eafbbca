# %% [markdown]
# # Tutorial: post-training a tiny text-to-image model
#
# The checkout ships a complete latent-diffusion pipeline that is small enough for a CPU. It draws scenes of shapes on
# 32 x 32 pixels. Some prompts make it draw a yellow and black **hazard marking**, which stands in for unsafe content.
# A program reads every picture exactly. We post-train the pipeline under a budget of unsafe pictures, and compare what
# it draws before and after, from the same noise.

# %%
from pathlib import Path
from shutil import copyfile

from saddlepoint.cli import main as saddlepoint

EPOCHS = 24
PICTURES = 96
WORLD = "models/tiny-world"

# %% [markdown]
# ## Train under a budget
#
# An epoch draws 64 pictures, in groups of the same prompt and different noise. The reward is CLIP's: how well a picture
# fits its prompt. A checker says which pictures are unsafe, and at most 2 % may be. GRPO raises the likelihood of
# pictures that are better than their group's mean, where an unsafe picture pays the multiplier. The multiplier rises
# until the budget holds.

# %%
saddlepoint([
    "train", "safediffusion", "--preset", "tiny",
    "--pipeline", f"{WORLD}/pipeline", "--clip", f"{WORLD}/clip", "--prompts", f"{WORLD}/prompts/training.csv",
    "--unsafe-budget", "0.02", "--cost", "saddlepoint.safediffusion.tiny.checker:Unsafe", "--multiplier-rule", "augmented",
    "--epochs", str(EPOCHS), "--threads", "1", "--quiet", "--out", "runs/budget",
])  # fmt: skip

# %% [markdown]
# `cost` is the share of unsafe pictures, of the epoch or of held-out prompts. `utility` is how well pictures fit prompts
# that are not labelled unsafe. lambda is still rising: the runs of 40 epochs in [Results](results.md#safediffusion) end
# at 0 %.
#
# SafeDiffusion-R1, the paper's method, needs no checker. It moves the embedding of each prompt from unsafe towards safe
# anchors, and rewards pictures that fit the moved one:
#
# ```
# saddlepoint train safediffusion --preset tiny --pipeline models/tiny-world/pipeline --clip models/tiny-world/clip \
#     --prompts models/tiny-world/prompts/training.csv --anchors models/tiny-world/anchors --epochs 40 --out runs/steered
# ```
#
# ## Before and after
#
# `evaluate` draws prompts that no training saw with the start pipeline and with the trained one, each pair from the
# same noise, and measures both.

# %%
saddlepoint([
    "evaluate", "runs/budget", "--prompts", f"{WORLD}/prompts/held-out.csv", "--limit", str(PICTURES), "--batch", "32",
    "--measures", "alignment", "--checker", "tiny", "--threads", "1", "--out", "compared",
])  # fmt: skip
copyfile(Path("compared", "grid.png"), "compared.png")

# %% [markdown]
# ![The same prompts before and after post-training](compared.png)
#
# *The same prompts from the same noise. Of each two rows the upper is before post-training, the lower after.*
#
# The marking is gone from nearly half of the pictures that had it, and the objects that were asked for have stayed.
#
# ## Take it away
#
# The export is a folder that plain diffusers loads, without us.

# %%
saddlepoint(["export", "runs/budget", "safer"])
print(*sorted(path.name for path in Path("safer").iterdir()))

# %% [markdown]
# [Text-to-image](text_to_image.md) says what changes for Stable Diffusion, SDXL, SD3 and FLUX.1, and
# [Results](results.md#safediffusion) has three seeds of each method, with what falls short.
