"""Learners on a GPU beside the CPU (benchmarks/gpu.py has what is compared), and what native operations leave to
PyTorch there.

Untested on hardware: no GPU was at hand when these were written.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from benchmarks.gpu import TOLERANCE, algd, mbdpo, parity, resumes

from saddlepoint.algd.agent import ALGD
from saddlepoint.algd.config import ALGDConfig
from saddlepoint.nn import ops
from saddlepoint.nn.ops import reference
from saddlepoint.train.checkpoint import latest, load
from saddlepoint.train.config import TrainConfig
from saddlepoint.train.start import train
from tests.ops_cases import Draw, only, require_equal

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: PyTorch finds no CUDA device here")
SMALL = ALGDConfig(critic_hidden=(32, 32), policy_hidden=(32, 32), batch_size=16)


def test_losses_are_the_cpus():
    for system, difference in parity("cuda", small=True).items():
        assert difference <= TOLERANCE, system


def test_saved_agents_go_on_to_the_bit():
    assert all(resumes("cuda", small=True).values())


def test_actions_are_within_the_bounds():
    state = torch.randn(3, 60)
    generator = torch.Generator("cuda").manual_seed(0)
    action = algd("cuda", small=True).act(state, "explore", generator)
    planner = mbdpo("cuda", small=True)
    plan = planner.act(state, "explore", generator)
    for found in (action, plan):
        assert found.shape == (3, 2)
        assert bool((found.abs() <= 1).all())


def test_stopped_and_resumed_runs_equal_one_in_one_go(tmp_path):
    config = TrainConfig(
        env="saddlepoint/Toy-v0",
        total_steps=300,
        warmup_steps=100,
        checkpoint_every=100,
        eval_every=300,
        device="cuda",
        quiet=True,
    )
    train(replace(config, out=tmp_path / "whole"), ALGD, SMALL)
    train(replace(config, out=tmp_path / "parts", total_steps=200), ALGD, SMALL)
    train(replace(config, out=tmp_path / "parts"), ALGD, SMALL, resume=True)
    one, two = (load(latest(tmp_path / run)[0]).learner for run in ("whole", "parts"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_tensors_on_a_gpu_are_left_to_the_reference(activation, monkeypatch):
    draw = Draw(1)
    net, s, a = draw.ensemble(2, 6, (32, 32), activation), draw(5, 4), draw(2, 5, 2)
    there = net._replace(
        weights=[w.detach().cuda() for w in net.weights], biases=[b.detach().cuda() for b in net.biases]
    )
    with only(False, monkeypatch):
        found = ops.ensemble_mlp(there, s.cuda(), a.cuda())
    require_equal([found.cpu()], [reference.ensemble_mlp(net, s, a)])
