"""Layouts and lidar against plain loops over the same definitions."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saddlepoint.envs.navigation import CATALOGUE, POINT, Task, goal, hazards
from saddlepoint.envs.navigation import layout as layouts
from saddlepoint.envs.navigation.layout import Plan, sample_layout, sample_place
from saddlepoint.envs.navigation.lidar import lidar
from saddlepoint.types import UserError


def one_by_one(rng, plan):
    """The sequential algorithm of the specification, one draw at a time."""
    while True:
        placed = []
        for keepout, (x0, y0, x1, y1) in zip(plan.keepouts, plan.boxes):
            for _ in range(100):
                x, y = rng.uniform(x0, x1), rng.uniform(y0, y1)
                if all(math.sqrt((x - a) ** 2 + (y - b) ** 2) >= k + keepout for (a, b), k in zip(placed, plan.keepouts)):
                    placed.append((x, y))
                    break
            else:
                break
        else:
            return np.array(placed)


@pytest.mark.parametrize("name", ["PointGoal2", "CarPush2", "PointButton2", "PointButton1-fixed", "PointPush1-fixed"])
def test_layouts_and_the_stream_after_them_are_those_of_one_draw_at_a_time(name):
    plan = CATALOGUE[name].plan()
    for seed in range(2):
        block, single = np.random.RandomState(seed), np.random.RandomState(seed)
        np.testing.assert_array_equal(sample_layout(block, plan), one_by_one(single, plan))
        assert block.uniform() == single.uniform()


def test_every_layout_keeps_its_distances():
    plan = CATALOGUE["CarGoal2"].plan()
    rng = np.random.RandomState(3)
    for _ in range(20):
        xy = sample_layout(rng, plan)
        apart = np.linalg.norm(xy[:, None] - xy[None], axis=2) + 10 * np.eye(len(xy))
        assert (apart >= plan.keepouts[:, None] + plan.keepouts[None]).all()
        assert (xy >= plan.boxes[:, :2]).all()
        assert (xy <= plan.boxes[:, 2:]).all()


def test_a_place_among_others_and_none_where_there_is_none():
    box, others = np.array([-1.0, -1.0, 1.0, 1.0]), np.array([[0.0, 0.0]])
    block, single = np.random.RandomState(1), np.random.RandomState(1)
    for _ in range(30):  # only the corners are left, so that hundreds of tries are needed
        found = sample_place(block, box, others, np.array([1.3]))
        while True:
            x, y = single.uniform(-1, 1), single.uniform(-1, 1)
            if math.hypot(x, y) >= 1.3:
                break
        assert found == (x, y)
    assert sample_place(block, box, others, np.array([1.5])) is None


def test_what_cannot_be_placed_is_refused(monkeypatch):
    with pytest.raises(UserError, match="no place is left for goal"):
        Task("Small", POINT, 0.4, (goal(0.5),), CATALOGUE["PointGoal0"].objective)
    monkeypatch.setattr(layouts, "RESTARTS", 5)
    plan = Plan(("a", "b"), np.array([1.0, 1.0]), np.array([[0.0, 0, 1, 1], [0, 0, 1, 1]]))
    with pytest.raises(UserError, match="5 layouts failed"):
        sample_layout(np.random.RandomState(0), plan)


def read_one(position, rotation, centres, bins=16, reach=3.0):
    """One ring, one object after the other."""
    readings = [0.0] * bins
    for x, y in centres:
        e = rotation.T @ np.array([x - position[0], y - position[1], -position[2]])
        strength = max(0.0, reach - math.hypot(e[0], e[1])) / reach
        angle = (math.atan2(e[1], e[0]) % math.tau) * bins / math.tau
        i = int(angle)
        readings[i % bins] = max(readings[i % bins], strength)
        readings[(i + 1) % bins] = max(readings[(i + 1) % bins], (angle - i) * strength)
        readings[(i - 1) % bins] = max(readings[(i - 1) % bins], (1 - (angle - i)) * strength)
    return readings


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(0, 8))
def test_lidar_reads_as_the_definition_says(seed, envs, count):
    rng = np.random.default_rng(seed)
    position, centres = rng.uniform(-2, 2, (envs, 3)), rng.uniform(-3, 3, (envs, count, 2))
    rotation = np.linalg.qr(rng.normal(size=(envs, 3, 3)))[0]
    ring = rng.integers(0, 3, count)
    readings = lidar(position, rotation, centres, ring, 3)
    assert readings.shape == (envs, 3, 16)
    for env in range(envs):
        for kind in range(3):
            expected = read_one(position[env], rotation[env], centres[env, ring == kind])
            np.testing.assert_allclose(readings[env, kind], expected, atol=1e-12)


def test_an_object_dead_ahead_is_seen_where_the_original_fails():
    turn = np.array([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]])
    readings = lidar(np.zeros((1, 3)), turn, np.array([[[1.0, -1e-17]]]), np.array([0]), 1)  # angle rounds to 2 pi
    np.testing.assert_allclose(readings[0, 0, [0, 15]], 2 / 3, atol=1e-12)
    np.testing.assert_allclose(readings[0, 0, 1:15], 0.0, atol=1e-12)


def test_kinds_say_what_is_wrong_with_them():
    with pytest.raises(UserError, match="at least one object"):
        hazards(0)
